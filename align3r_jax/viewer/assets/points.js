// The turning point cloud: WebGL points, camera frusta as lines, drag / wheel / pinch / arrow keys.
// The data comes in the page itself: #cloud-meta (JSON) and #cloud-data (base64: positions as
// 3 x uint16 inside the box of the metadata, then colours as 3 x uint8). Axes: x right, y up.
(() => {
  "use strict";
  const canvas = document.getElementById("cloud");
  const figure = canvas.closest("figure");
  const meta = JSON.parse(document.getElementById("cloud-meta").textContent);
  const gl = canvas.getContext("webgl", { antialias: true, alpha: true });
  if (!gl) {
    figure.classList.add("no-webgl");
    return;
  }

  const bytes = Uint8Array.from(atob(document.getElementById("cloud-data").textContent.trim()), (c) =>
    c.charCodeAt(0));
  const total = meta.points;
  const FIELD_OF_VIEW = (45 * Math.PI) / 180;

  // ---- programs and buffers --------------------------------------------------------------
  function program(vertexSource, fragmentSource) {
    const result = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertexSource], [gl.FRAGMENT_SHADER, fragmentSource]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(result, shader);
    }
    gl.bindAttribLocation(result, 0, "position");
    gl.bindAttribLocation(result, 1, "colour");
    gl.linkProgram(result);
    return result;
  }
  const HEAD = "attribute vec3 position; attribute vec3 colour; uniform mat4 clip; varying vec3 shade;";
  const pointProgram = program(
    HEAD + `uniform vec3 low; uniform vec3 extent; uniform float size; uniform float smallest;
    void main() {
      gl_Position = clip * vec4(low + extent * position, 1.0);
      gl_PointSize = clamp(size / gl_Position.w, smallest, 40.0);
      shade = colour;
    }`,
    `precision mediump float; varying vec3 shade;
    void main() {
      vec2 offset = gl_PointCoord - 0.5;
      if (dot(offset, offset) > 0.25) discard;
      gl_FragColor = vec4(shade, 1.0);
    }`);
  const lineProgram = program(
    HEAD + "void main() { gl_Position = clip * vec4(position, 1.0); shade = colour; }",
    "precision mediump float; varying vec3 shade; void main() { gl_FragColor = vec4(shade, 1.0); }");
  const uniform = (name) => gl.getUniformLocation(pointProgram, name);
  const places = { clip: uniform("clip"), low: uniform("low"), extent: uniform("extent"),
                   size: uniform("size"), smallest: uniform("smallest") };
  const lineClip = gl.getUniformLocation(lineProgram, "clip");

  function buffer(data) {
    const result = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, result);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    return result;
  }
  const positions = buffer(bytes.subarray(0, 6 * total));
  const colours = buffer(bytes.subarray(6 * total, 9 * total));

  // Lines: per camera 8 edges of its frustum, then the path through all camera centres.
  const EDGES = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1];
  const lineXyz = [], lineRgb = [];
  meta.frusta.forEach((corners, t) => {
    for (const k of EDGES) {
      lineXyz.push(...corners[k]);
      lineRgb.push(...meta.cameraColours[t]);
    }
  });
  const pathStart = lineXyz.length / 3;
  meta.frusta.forEach((corners, t) => {
    lineXyz.push(...corners[0]);
    lineRgb.push(...meta.cameraColours[t]);
  });
  const linePositions = buffer(new Float32Array(lineXyz));
  const lineColours = buffer(new Uint8Array(lineRgb));

  function attributes(first, firstType, normalised, second) {
    gl.bindBuffer(gl.ARRAY_BUFFER, first);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, firstType, normalised, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, second);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 0, 0);
  }

  // ---- state -----------------------------------------------------------------------------
  const start = { yaw: 0, pitch: 0.12, distance: meta.distance, x: 0, y: 0 };
  const view = { ...start };
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = { turning: !still, phase: 0, frame: 0, visible: true, dirty: true, last: 0,
                  pointScale: 1, cameras: true, moving: true, clock: 0 };
  const frames = meta.frusta.length;
  const hasMoving = meta.movingStarts[frames] > meta.movingStarts[0];

  // ---- drawing ---------------------------------------------------------------------------
  // Column-major clip matrix: perspective * shift(-pan, -distance) * pitch * yaw.
  function clipMatrix() {
    const yaw = view.yaw + (state.swing || 0);
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    const rows = [[cy, 0, sy, view.x], [sp * sy, cp, -sp * cy, view.y],
                  [-cp * sy, sp, cp * cy, -view.distance]];
    const near = 0.01 * meta.distance, far = 60 * Math.max(meta.distance, view.distance);
    const scale = 1 / Math.tan(FIELD_OF_VIEW / 2);
    const aspect = canvas.width / canvas.height;
    // A narrow (phone) canvas keeps the horizontal angle instead.
    const fit = Math.min(1, aspect / 1.2);
    const result = new Float32Array(16);
    for (let column = 0; column < 4; column++) {
      const z = rows[2][column];
      result[4 * column] = (scale * fit / aspect) * rows[0][column];
      result[4 * column + 1] = scale * fit * rows[1][column];
      result[4 * column + 2] = ((far + near) / (near - far)) * z +
        (column === 3 ? (2 * far * near) / (near - far) : 0);
      result[4 * column + 3] = -z;
    }
    return { matrix: result, pixels: (canvas.height / 2) * scale * fit };
  }

  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    const { matrix, pixels } = clipMatrix();
    gl.useProgram(pointProgram);
    gl.uniformMatrix4fv(places.clip, false, matrix);
    gl.uniform3fv(places.low, meta.low);
    gl.uniform3fv(places.extent, meta.extent);
    gl.uniform1f(places.size, meta.pointSize * state.pointScale * pixels);
    gl.uniform1f(places.smallest, 1.2 * ratio);
    attributes(positions, gl.UNSIGNED_SHORT, true, colours);
    gl.drawArrays(gl.POINTS, 0, meta.movingStarts[0]);
    const [from, to] = [meta.movingStarts[state.frame], meta.movingStarts[state.frame + 1]];
    if (state.moving && to > from) gl.drawArrays(gl.POINTS, from, to - from);
    if (!state.cameras) return;
    gl.useProgram(lineProgram);
    gl.uniformMatrix4fv(lineClip, false, matrix);
    attributes(linePositions, gl.FLOAT, false, lineColours);
    // With many cameras only the current frustum and every n-th are legible.
    const step = Math.ceil(frames / 24);
    for (let t = 0; t < frames; t++) {
      if (t % step === 0 || t === state.frame) gl.drawArrays(gl.LINES, 16 * t, 16);
    }
    gl.drawArrays(gl.LINE_STRIP, pathStart, frames);
  }

  function tick(now) {
    const seconds = Math.min((now - state.last) / 1000, 0.1);
    state.last = now;
    if (state.turning && state.visible) {
      state.phase += seconds;
      // A cloud seen from one side swings, one seen from all around turns right round.
      state.swing = meta.allAround ? 0.35 * state.phase : 0.45 * Math.sin(0.6 * state.phase);
      state.clock += seconds * meta.fps;
      if (state.clock >= 1) {
        showFrame((state.frame + Math.floor(state.clock)) % frames);
        state.clock %= 1;
      }
      state.dirty = true;
    }
    if (state.dirty && state.visible) {
      draw();
      state.dirty = false;
    }
    requestAnimationFrame(tick);
  }

  // ---- controls --------------------------------------------------------------------------
  const control = (name) => figure.querySelector(`[data-control="${name}"]`);
  function changed() { state.dirty = true; }
  function showFrame(t) {
    state.frame = t;
    control("frame").value = t;
    control("frame-name").textContent = `frame ${t} / ${frames - 1}`;
    changed();
  }
  function turn(on) {
    state.turning = on;
    control("play").textContent = on ? "Pause" : "Turn";
    control("play").setAttribute("aria-pressed", String(on));
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
    const step = (2 * view.distance * Math.tan(FIELD_OF_VIEW / 2)) / canvas.clientHeight;
    view.x += dx * step;
    view.y -= dy * step;
    changed();
  }

  control("frame").max = frames - 1;
  control("frame").addEventListener("input", (event) => { turn(false); showFrame(+event.target.value); });
  control("play").addEventListener("click", () => turn(!state.turning));
  control("reset").addEventListener("click", () => { Object.assign(view, start); state.phase = state.swing = 0; changed(); });
  control("size").addEventListener("input", (event) => { state.pointScale = 2 ** +event.target.value; changed(); });
  control("cameras").addEventListener("change", (event) => { state.cameras = event.target.checked; changed(); });
  control("moving").addEventListener("change", (event) => { state.moving = event.target.checked; changed(); });
  if (!hasMoving) control("moving").closest("label").hidden = true;
  if (frames < 2) control("frame").closest("label").hidden = true;

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
    const moves = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (moves[event.key]) rotate(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(0.9);
    else if (event.key === "-") zoom(1.1);
    else if (event.key === " ") turn(!state.turning);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("webglcontextlost", () => figure.classList.add("no-webgl"));
  new IntersectionObserver((entries) => { state.visible = entries[0].isIntersecting; changed(); }).observe(canvas);
  window.addEventListener("resize", changed);

  showFrame(0);
  turn(state.turning);
  requestAnimationFrame(tick);
})();
