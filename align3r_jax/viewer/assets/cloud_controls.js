// The controls of the point cloud: drag, wheel, pinch and keys turn it, the form says what is shown.
if (cloud) (() => {
  "use strict";
  const { canvas, figure, meta, start, view, look } = cloud;
  const control = (name) => figure.querySelector(`[data-control="${name}"]`);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = { turning: !still, phase: 0, visible: true, dirty: true, last: 0 };
  const changed = () => { state.dirty = true; };

  function tick(now) {
    const seconds = Math.min((now - state.last) / 1000, 0.1);
    state.last = now;
    if (state.turning && state.visible) {
      state.phase += seconds;
      // A cloud seen from one side swings, one seen from all around turns right round.
      view.swing = meta.allAround ? 0.35 * state.phase : 0.45 * Math.sin(0.6 * state.phase);
      changed();
    }
    if (state.dirty && state.visible) {
      cloud.draw();
      state.dirty = false;
    }
    requestAnimationFrame(tick);
  }

  // ---- the frame that all panels show, drawn in the same go ---------------------------------
  player.onFrame((index, frame, picture) => {
    look.index = index;
    canvas.dataset.frame = frame;
    cloud.setPicture(picture);
    if (state.visible) cloud.draw();
    else changed();
  });

  // ---- the view ----------------------------------------------------------------------------
  function turn(on) {
    state.turning = on;
    control("turn").checked = on;
    changed();
  }
  function zoom(factor) {
    view.distance = Math.min(Math.max(view.distance * factor, 0.05 * meta.distance), 8 * meta.distance);
    changed();
  }
  function rotate(dx, dy) {
    view.yaw += dx;
    view.pitch = Math.min(Math.max(view.pitch + dy, -1.55), 1.55);
    changed();
  }
  function pan(dx, dy) {
    const step = (2 * view.distance * Math.tan(cloud.FIELD_OF_VIEW / 2)) / canvas.clientHeight;
    view.x += dx * step;
    view.y -= dy * step;
    changed();
  }
  control("turn").addEventListener("change", (event) => turn(event.target.checked));
  control("reset").addEventListener("click", () => {
    Object.assign(view, start);
    state.phase = 0;
    changed();
  });

  // ---- what is shown -----------------------------------------------------------------------
  // How many points have at least a level of confidence.
  const atLeast = new Array(257).fill(0);
  for (const level of cloud.confidence) atLeast[level] += 1;
  for (let level = 255; level >= 0; level--) atLeast[level] += atLeast[level + 1];
  function threshold(level) {
    look.threshold = level;
    const least = Math.exp((level / 255) * meta.logConfidence);
    const share = Math.round((100 * atLeast[level]) / Math.max(meta.points, 1));
    const text = level ? `≥ ${least.toPrecision(3)}: ${share} %` : "all points";
    control("confidence-text").textContent = text;
    control("confidence").setAttribute("aria-valuetext", text);
    changed();
  }
  control("confidence").addEventListener("input", (event) => threshold(+event.target.value));
  control("colour").addEventListener("change", (event) => { cloud.paint(event.target.value); changed(); });
  control("gather").addEventListener("change", (event) => { look.gather = event.target.value; changed(); });
  control("size").addEventListener("input", (event) => { look.pointScale = 2 ** +event.target.value; changed(); });
  control("cameras").addEventListener("change", (event) => { look.cameras = event.target.checked; changed(); });
  control("still").addEventListener("change", (event) => { look.still = event.target.checked; changed(); });
  control("moving").addEventListener("change", (event) => { look.moving = event.target.checked; changed(); });
  const hasMoving = meta.movingStarts.at(-1) > meta.movingStarts[0];
  for (const name of ["still", "moving"]) control(name).closest("label").hidden = !hasMoving;
  control("gather").closest("label").hidden = player.count < 2;
  // A reload keeps what a form says; the picture follows it.
  for (const name of ["confidence", "size"]) control(name).dispatchEvent(new Event("input"));
  for (const name of ["colour", "gather", "cameras", "still", "moving"]) control(name).dispatchEvent(new Event("change"));

  // ---- mouse, touch and keys on the picture ---------------------------------------------------
  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const after = [event.clientX, event.clientY];
    const [dx, dy] = [after[0] - before[0], after[1] - before[1]];
    if (state.turning) turn(false);
    if (pointers.size === 1) {
      if (event.shiftKey || event.buttons & 6) pan(dx, dy);
      else rotate(dx * 0.008, dy * 0.008);
    } else {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const length = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      zoom(Math.max(length(before), 1) / Math.max(length(after), 1));
      pan(dx / 2, dy / 2);
    }
    pointers.set(event.pointerId, after);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    // Until the view was clicked, the wheel scrolls the page past it.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) * 0.002));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const moves = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (moves[event.key]) {
      if (state.turning) turn(false);
      rotate(...moves[event.key]);
    } else if (event.key === "+" || event.key === "=") zoom(0.9);
    else if (event.key === "-") zoom(1.1);
    else if (event.key === " ") player.toggle();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("webglcontextlost", () => figure.classList.add("no-webgl"));
  new IntersectionObserver((entries) => {
    state.visible = entries.at(-1).isIntersecting;
    changed();
  }).observe(canvas);
  window.addEventListener("resize", changed);

  turn(state.turning);
  requestAnimationFrame(tick);
})();
