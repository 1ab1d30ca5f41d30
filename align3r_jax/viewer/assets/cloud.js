// Drawing of the point cloud: WebGL points, camera frusta as lines, the current camera's picture.
// The data comes in the page itself: #cloud-meta (JSON) and #cloud-data (base64: positions as
// 3 x uint16 inside the box of the metadata, colours as 3 x uint8, then a byte of confidence and a
// byte of inverse depth each). Axes: x right, y up.
const cloud = (() => {
  "use strict";
  const canvas = document.getElementById("cloud");
  const figure = canvas.closest("figure");
  const meta = JSON.parse(document.getElementById("cloud-meta").textContent);
  const gl = canvas.getContext("webgl", { antialias: true, alpha: true });
  if (!gl) {
    figure.classList.add("no-webgl");
    return null;
  }

  const text = document.getElementById("cloud-data").textContent.trim();
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const total = meta.points;
  const rgb = bytes.subarray(6 * total, 9 * total);
  const confidence = bytes.subarray(9 * total, 10 * total);
  const inverseDepth = bytes.subarray(10 * total, 11 * total);
  const FIELD_OF_VIEW = (45 * Math.PI) / 180;
  const MOVING_RED = [230, 60, 40];

  // ---- programs and buffers --------------------------------------------------------------
  function program(names, vertexSource, fragmentSource) {
    const result = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertexSource], [gl.FRAGMENT_SHADER, fragmentSource]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(result, shader);
    }
    names.forEach((name, k) => gl.bindAttribLocation(result, k, name));
    gl.linkProgram(result);
    return result;
  }
  const pointProgram = program(["position", "colour", "sure"],
    `attribute vec3 position; attribute vec3 colour; attribute float sure; varying vec3 shade;
    uniform mat4 clip; uniform vec3 low; uniform vec3 extent;
    uniform float size; uniform float smallest; uniform float threshold;
    void main() {
      gl_Position = clip * vec4(low + extent * position, 1.0);
      gl_PointSize = clamp(size / gl_Position.w, smallest, 40.0);
      if (sure < threshold) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
      shade = colour;
    }`,
    `precision mediump float; varying vec3 shade;
    void main() {
      vec2 offset = gl_PointCoord - 0.5;
      if (dot(offset, offset) > 0.25) discard;
      gl_FragColor = vec4(shade, 1.0);
    }`);
  const lineProgram = program(["position", "colour"],
    `attribute vec3 position; attribute vec3 colour; varying vec3 shade;
    uniform mat4 clip; uniform vec2 shift; uniform vec4 only;
    void main() {
      gl_Position = clip * vec4(position, 1.0);
      gl_Position.xy += shift * gl_Position.w;
      shade = mix(colour, only.rgb, only.a);
    }`,
    "precision mediump float; varying vec3 shade; void main() { gl_FragColor = vec4(shade, 1.0); }");
  const pictureProgram = program(["position", "place"],
    `attribute vec3 position; attribute vec2 place; varying vec2 at; uniform mat4 clip;
    void main() { gl_Position = clip * vec4(position, 1.0); at = place; }`,
    `precision mediump float; varying vec2 at; uniform sampler2D picture;
    void main() { gl_FragColor = vec4(texture2D(picture, at).rgb, 1.0); }`);
  const places = (owner, ...names) =>
    Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(owner, name)]));
  const at = places(pointProgram, "clip", "low", "extent", "size", "smallest", "threshold");
  const lineAt = places(lineProgram, "clip", "shift", "only");
  const pictureAt = places(pictureProgram, "clip");

  function buffer(data) {
    const result = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, result);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    return result;
  }
  function attribute(place, source, size, type) {
    gl.bindBuffer(gl.ARRAY_BUFFER, source);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, type !== gl.FLOAT, 0, 0);
  }
  const positions = buffer(bytes.subarray(0, 6 * total));
  const sureness = buffer(confidence);
  let colours = buffer(rgb);

  // Lines: per camera 8 edges of its frustum, then the path through all camera centres.
  const EDGES = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1];
  const cameras = meta.frusta.length;
  const lineXyz = [], lineRgb = [];
  function vertex(t, corner) {
    lineXyz.push(...meta.frusta[t][corner]);
    lineRgb.push(...meta.cameraColours[t]);
  }
  for (let t = 0; t < cameras; t++) EDGES.forEach((corner) => vertex(t, corner));
  for (let t = 0; t < cameras; t++) vertex(t, 0);
  const linePositions = buffer(new Float32Array(lineXyz));
  const lineColours = buffer(new Uint8Array(lineRgb));
  const corners = gl.createBuffer();
  const cornerPlaces = buffer(new Float32Array([0, 0, 1, 0, 1, 1, 0, 1]));
  const picture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, picture);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);

  // ---- state -----------------------------------------------------------------------------
  const start = { yaw: 0, pitch: meta.pitch, swing: 0, distance: meta.distance, x: 0, y: meta.shift };
  const view = { ...start };
  const look = { index: 0, pointScale: 1, threshold: 0, cameras: true, moving: true, still: true, gather: "all" };
  const { staticStarts, movingStarts } = meta;

  function paint(by) {
    const painted = new Uint8Array(3 * total);
    if (by === "image") painted.set(rgb);
    for (let n = 0, frame = 0; by !== "image" && n < total; n++) {
      let colour;
      if (by === "time") {
        const starts = n < movingStarts[0] ? staticStarts : movingStarts;
        if (n === movingStarts[0]) frame = 0;
        while (n >= starts[frame + 1]) frame++;
        colour = meta.cameraColours[meta.shownCameras[frame]];
      } else if (by === "depth") colour = meta.ramps.depth[inverseDepth[n]];
      else if (by === "confidence") colour = meta.ramps.confidence[confidence[n]];
      else if (n >= movingStarts[0]) colour = MOVING_RED;
      else {
        const grey = 40 + 0.6 * (0.3 * rgb[3 * n] + 0.6 * rgb[3 * n + 1] + 0.1 * rgb[3 * n + 2]);
        colour = [grey, grey, grey];
      }
      painted.set(colour, 3 * n);
    }
    gl.deleteBuffer(colours);
    colours = buffer(painted);
  }

  function setPicture(source) {
    gl.bindTexture(gl.TEXTURE_2D, picture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, source);
  }

  // ---- drawing ---------------------------------------------------------------------------
  // Column-major clip matrix: perspective * shift(-pan, -distance) * pitch * yaw.
  function clipMatrix() {
    const yaw = view.yaw + view.swing;
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    const rows = [[cy, 0, sy, view.x], [sp * sy, cp, -sp * cy, view.y],
                  [-cp * sy, sp, cp * cy, -view.distance]];
    const near = 0.01 * meta.distance, far = 60 * Math.max(meta.distance, view.distance);
    const scale = 1 / Math.tan(FIELD_OF_VIEW / 2);
    const aspect = canvas.width / canvas.height;
    // A narrow (phone) canvas keeps the horizontal angle instead.
    const fit = Math.min(1, aspect / 1.2);
    const matrix = new Float32Array(16);
    for (let column = 0; column < 4; column++) {
      const z = rows[2][column];
      matrix[4 * column] = (scale * fit / aspect) * rows[0][column];
      matrix[4 * column + 1] = scale * fit * rows[1][column];
      matrix[4 * column + 2] = ((far + near) / (near - far)) * z +
        (column === 3 ? (2 * far * near) / (near - far) : 0);
      matrix[4 * column + 3] = -z;
    }
    return { matrix, pixels: (canvas.height / 2) * scale * fit };
  }

  function staticRange() {
    const from = look.gather === "frame" ? staticStarts[look.index] : 0;
    return [from, look.gather === "all" ? movingStarts[0] : staticStarts[look.index + 1]];
  }

  function drawPoints(matrix, pixels, ratio) {
    gl.useProgram(pointProgram);
    gl.uniformMatrix4fv(at.clip, false, matrix);
    gl.uniform3fv(at.low, meta.low);
    gl.uniform3fv(at.extent, meta.extent);
    gl.uniform1f(at.smallest, 1.2 * ratio);
    gl.uniform1f(at.threshold, (look.threshold - 0.5) / 255);
    attribute(0, positions, 3, gl.UNSIGNED_SHORT);
    attribute(1, colours, 3, gl.UNSIGNED_BYTE);
    attribute(2, sureness, 1, gl.UNSIGNED_BYTE);
    const moving = [movingStarts[look.index], movingStarts[look.index + 1]];
    for (const [from, to] of [look.still ? staticRange() : [0, 0], look.moving ? moving : [0, 0]]) {
      if (to <= from) continue;
      // Where few points stand for all pixels of a frame, they grow until surfaces close.
      const growth = Math.min(Math.sqrt(meta.pixels / (to - from)), 6);
      const side = meta.pixelSide * (from < movingStarts[0] ? Math.max(2, 1.5 * growth) : 2);
      gl.uniform1f(at.size, side * look.pointScale * pixels);
      gl.drawArrays(gl.POINTS, from, to - from);
    }
    gl.disableVertexAttribArray(2);
  }

  function drawCameras(matrix) {
    const current = meta.shownCameras[look.index];
    gl.useProgram(pictureProgram);
    gl.uniformMatrix4fv(pictureAt.clip, false, matrix);
    gl.bindBuffer(gl.ARRAY_BUFFER, corners);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(meta.frusta[current].slice(1).flat()), gl.DYNAMIC_DRAW);
    attribute(0, corners, 3, gl.FLOAT);
    attribute(1, cornerPlaces, 2, gl.FLOAT);
    gl.drawArrays(gl.TRIANGLE_FAN, 0, 4);

    gl.useProgram(lineProgram);
    gl.uniformMatrix4fv(lineAt.clip, false, matrix);
    attribute(0, linePositions, 3, gl.FLOAT);
    attribute(1, lineColours, 3, gl.UNSIGNED_BYTE);
    gl.uniform2f(lineAt.shift, 0, 0);
    gl.uniform4f(lineAt.only, 0, 0, 0, 0);
    // With many cameras only every n-th frustum is legible.
    const step = Math.ceil(cameras / 12);
    for (let t = 0; t < cameras; t += step) gl.drawArrays(gl.LINES, 16 * t, 16);
    gl.drawArrays(gl.LINE_STRIP, 16 * cameras, cameras);
    // The current one is thick: WebGL has no wide lines, so they are drawn a pixel apart.
    gl.uniform4f(lineAt.only, 1, 0.82, 0.1, 1);
    for (const [dx, dy] of [[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]]) {
      gl.uniform2f(lineAt.shift, 2 * dx / canvas.width, 2 * dy / canvas.height);
      gl.drawArrays(gl.LINES, 16 * current, 16);
    }
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
    drawPoints(matrix, pixels, ratio);
    if (look.cameras) drawCameras(matrix);
  }

  return { canvas, figure, meta, start, view, look, confidence, paint, setPicture, draw, FIELD_OF_VIEW };
})();
