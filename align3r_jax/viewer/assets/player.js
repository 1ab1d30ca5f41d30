// All panels of the report and its 3-D view show one frame, the same one. The pictures come in the
// page itself: #film-data (JSON) holds, for each panel, one base64 WebP (or null) a shown frame.
const player = (() => {
  "use strict";
  const film = JSON.parse(document.getElementById("film-data").textContent);
  const control = (name) => document.querySelector(`[data-control="${name}"]`);
  const canvases = [...document.querySelectorAll("canvas[data-panel]")];
  const count = film.frames.length;
  const KEPT = 24; // decoded frames
  const decoded = new Map();
  const listeners = [];
  const state = { shown: -1, wanted: 0, busy: false, playing: false, due: 0 };

  function decode(index) {
    if (!decoded.has(index)) {
      const images = canvases.map(async (canvas) => {
        const data = film.pictures[canvas.dataset.panel][index];
        if (data === null) return null;
        const image = new Image();
        image.src = "data:image/webp;base64," + data;
        await image.decode();
        return image;
      });
      decoded.set(index, Promise.all(images));
      if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(index);
  }

  // Everything is drawn in one go once all pictures of a frame are decoded: no panel runs ahead.
  function draw(index, images) {
    const frame = film.frames[index];
    canvases.forEach((canvas, k) => {
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      if (images[k]) context.drawImage(images[k], 0, 0, canvas.width, canvas.height);
      canvas.dataset.frame = frame;
      const name = film.names[canvas.dataset.panel];
      canvas.setAttribute("aria-label", `${name}, frame ${frame}${images[k] ? "" : ": none"}`);
    });
    state.shown = index;
    const text = `frame ${frame} / ${film.last}`;
    control("frame-name").textContent = `${text} · ${film.times[index].toFixed(2)} s`;
    control("frame").value = index;
    control("frame").setAttribute("aria-valuetext", `frame ${frame} of ${film.last}`);
    for (const listener of listeners) listener(index, frame, canvases[0]);
  }

  async function show(index) {
    state.wanted = Math.min(Math.max(index, 0), count - 1);
    if (state.busy) return;
    state.busy = true;
    while (state.shown !== state.wanted) {
      const next = state.wanted;
      draw(next, await decode(next));
    }
    state.busy = false;
    if (state.playing) decode((state.shown + 1) % count);
  }

  function play(on) {
    state.playing = on && count > 1;
    control("play").textContent = state.playing ? "Pause" : "Play";
    state.due = performance.now();
    if (state.playing) requestAnimationFrame(tick);
  }

  function tick(now) {
    if (!state.playing) return;
    if (!state.busy && now >= state.due) {
      // Every frame is shown; a slow device plays slower instead of leaving frames out.
      state.due = now + 1000 / (film.fps * +control("speed").value);
      show((state.wanted + 1) % count);
    }
    requestAnimationFrame(tick);
  }

  function jump(index) {
    play(false);
    show(index);
  }

  // Keys, wherever they are pressed in the panels or on the slider; arrows also if nothing has focus.
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 };
  function pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === " ") play(!state.playing);
    else if (event.key in steps) jump(state.wanted + steps[event.key]);
    else if (event.key === "Home") jump(0);
    else if (event.key === "End") jump(count - 1);
    else return;
    event.preventDefault();
  }

  control("play").addEventListener("click", () => play(!state.playing));
  control("frame").addEventListener("input", (event) => jump(+event.target.value));
  control("frame").addEventListener("keydown", pressed);
  control("panels").addEventListener("keydown", pressed);
  document.addEventListener("keydown", (event) => {
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    if (event.target === document.body && sideways) pressed(event);
  });
  // Buttons that name a frame, in the warnings and beside charts.
  for (const button of document.querySelectorAll("[data-jump]")) {
    button.addEventListener("click", () => {
      const frame = +button.dataset.jump;
      const distance = film.frames.map((t) => Math.abs(t - frame));
      jump(distance.indexOf(Math.min(...distance)));
      control("panels").focus({ preventScroll: true });
      control("panels").scrollIntoView({ block: "center" });
    });
  }
  show(0);
  return { count,
           // Calls back with place, number and input picture of each frame, once the panels show it.
           toggle: () => play(!state.playing), shown: () => state.shown,
           onFrame(listener) {
             listeners.push(listener);
             if (state.shown >= 0) listener(state.shown, film.frames[state.shown], canvases[0]);
           } };
})();

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Pages from a file may have no clipboard: select the text, as a person would.
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
