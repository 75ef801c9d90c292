// Draws digits with the project's models, exported as ONNX, in the visitor's browser.
//
// A file holds one step of a drawing (mnist_transformer/models/export.py). This module repeats it,
// supplies random numbers, and shows the digit. Random numbers differ from PyTorch's: a seed gives
// one digit here and another one there.

const FORMAT = 1; // of the ONNX files, as in models/export.py
const SLOW = 120; // ms between the steps of a slow drawing
const BOX = 20; // the side of the grey box
const IMAGE = 28; // the side of an image
const NULL_CLASS = 10;

// --- random numbers -----------------------------------------------------------------------------

/** A function that returns numbers in [0, 1) with 24 bits: SplitMix32 (Steele et al. 2014). */
export function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 8) / 2 ** 24;
  };
}

/** Standard normal numbers from uniform ones (Box and Muller 1958). */
function normals(uniform, count) {
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// --- MNIST's program: data/scans.py, exact to the byte ------------------------------------------

const f = Math.fround;

/** For each box row the scanned rows that it covers, in order, and their shares in float32. */
function shares(side) {
  const scale = f(BOX / side);
  const found = Array.from({ length: BOX }, () => []);
  for (let row = 0; row < side; row++) {
    const start = f(BOX / 2 + f(scale * f(row - side / 2)));
    const end = f(start + 0.99 * scale); // 0.99 is a double in the program
    const first = Math.max(Math.floor(start), 0);
    const last = Math.min(Math.floor(end), BOX - 1);
    if (first >= last) {
      found[first].push([row, scale]);
    } else {
      found[first].push([row, f(first + 1 - start)]);
      found[last].push([row, f(end - last)]);
    }
  }
  return found.map((rows) => rows.filter(([, share]) => share > 0));
}

/** The 20 x 20 grey levels of a scan: side x side pixels of 0 and 1, row by row. */
function toBox(scan, side) {
  const rows = shares(side);
  const area = new Float32Array(BOX * BOX);
  for (let r = 0; r < BOX; r++) {
    for (let c = 0; c < BOX; c++) {
      let sum = 0;
      for (const [row, height] of rows[r]) {
        for (const [column, width] of rows[c]) {
          if (scan[row * side + column]) sum = f(sum + f(height * width));
        }
      }
      area[r * BOX + c] = sum;
    }
  }
  const most = area.reduce((a, b) => Math.max(a, b), 0) || 1;
  const factor = f(255 / most);
  return Uint8Array.from(area, (x) => Math.trunc(f(f(x * factor) - 128)) + 128);
}

/** The row and column of the box that bring its centre of mass to the middle of the image. */
function corner(box) {
  const half = IMAGE / 2;
  let total = 0;
  const mass = [0, 0];
  box.forEach((level, i) => {
    total += level;
    mass[0] += level * Math.floor(i / BOX);
    mass[1] += level * (i % BOX);
  });
  total = Math.max(total, 1);
  return mass.map((m) => -Math.floor((2 * (m - half * total) + total) / (2 * total)));
}

/** The 28 x 28 levels that MNIST's program makes of a scan; in its middle while it is drawn.
 *  A box that reaches beyond the image is cut, as rare ones of MNIST are. */
export function toImage(scan, side, unfinished = false) {
  const box = toBox(scan, side);
  const [row, column] = unfinished ? [(IMAGE - BOX) / 2, (IMAGE - BOX) / 2] : corner(box);
  const image = new Uint8Array(IMAGE * IMAGE);
  for (let r = Math.max(0, -row); r < Math.min(BOX, IMAGE - row); r++) {
    for (let c = Math.max(0, -column); c < Math.min(BOX, IMAGE - column); c++) {
      image[(row + r) * IMAGE + column + c] = box[r * BOX + c];
    }
  }
  return image;
}

// --- models -------------------------------------------------------------------------------------

let ort; // ONNX Runtime, once it is here

/** The bytes of a file beside the page, unpacked unless the server has done so. */
async function read(name) {
  const response = await fetch(new URL(name, import.meta.url)).catch(() => {
    throw new Error(`The file ${name} did not arrive: is the server still there?`);
  });
  if (!response.ok) throw new Error(`The file ${name} is missing: the server says ${response.status}.`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer().catch(() => {
    throw new Error(`The file ${name} is damaged: it cannot be unpacked.`);
  }));
}

async function loadRuntime() {
  if (typeof WebAssembly !== "object") {
    throw new Error("WebAssembly is switched off in this browser: the models need it to draw.");
  }
  const [runtime, wasm] = await Promise.all([
    import("./vendor/ort.wasm.bundle.min.mjs"),
    read("vendor/ort-wasm-simd-threaded.wasm.gz"),
  ]);
  runtime.env.wasm.numThreads = 1; // threads would need headers of the server
  runtime.env.wasm.wasmBinary = wasm.buffer;
  return runtime;
}

/** The entry of an ONNX file's metadata, which are its fields 14 (onnx.proto), or undefined. */
function metadata(bytes, name) {
  const text = new TextDecoder();
  let at = 0;
  const varint = () => {
    for (let value = 0, unit = 1; ; unit *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (!(byte & 128)) return value;
    }
  };
  const field = () => {
    const key = varint();
    const value = varint();
    if ((key & 7) !== 2) return [key >> 3, ""]; // a number: nothing that is looked for
    at += value;
    return [key >> 3, bytes.subarray(at - value, at)];
  };
  while (at < bytes.length) {
    const [number, value] = field();
    if (number !== 14) continue;
    const end = at;
    at -= value.length;
    const [entry, content] = [field()[1], field()[1]].map((part) => text.decode(part));
    at = end;
    if (entry === name) return content;
  }
}

async function loadModel(name) {
  ort ??= loadRuntime();
  const [runtime, bytes] = await Promise.all([ort, read(`models/${name}.onnx.gz`)]);
  let about = {};
  try {
    about = JSON.parse(metadata(bytes, "mnist_transformer"));
  } catch { /* not ONNX, or not of this project: it has no format */ }
  if (about.format !== FORMAT) {
    throw new Error(
      `The file of ${name} has format ${about.format ?? "none"}, expected ${FORMAT}: ` +
      "export it again with the version of mnist-transformer that this page comes from.");
  }
  try {
    return { ...about, session: await runtime.InferenceSession.create(bytes) };
  } catch (error) {
    throw new Error(`The file of ${name} cannot be read: ${error.message}`);
  }
}

const loading = {};
const model = (name) => (loading[name] ??= loadModel(name));

async function step(session, inputs) {
  const feeds = {};
  const { Tensor } = await ort;
  for (const [name, [type, data, shape]] of Object.entries(inputs)) {
    feeds[name] = new Tensor(type, data, shape);
  }
  return session.run(feeds);
}

const scalar = (value) => ["float32", [value], []];

/** The passes of a drawing: with the class and, where guidance needs it, without one. */
const passes = (digit, guidance) => (guidance === 1 ? [digit] : [digit, NULL_CLASS]);

// --- drawing ------------------------------------------------------------------------------------

/** Scans as they are drawn, each with its side, and whether it is the last one. */
async function* drawScan({ session, ...sizes }, digit, seed, guidance) {
  const [size, [patches, values]] = [sizes.canvas, sizes.uniform];
  const [tokens, depth, two, , heads, width] = sizes.cache;
  const random = uniforms(seed);
  const sideUniform = random();
  const uniform = Float32Array.from({ length: patches * values }, random);
  const classes = passes(digit, guidance);
  const shape = [depth, two, classes.length, heads, width];
  const added = shape.reduce((a, b) => a * b);
  const cache = new Float32Array(tokens * added);
  let canvas = new Uint8Array(size[0] * size[1]);
  let patch = patches; // where the start token is
  for (let length = 0; length === 0 || patch < patches; length++) {
    const out = await step(session, {
      patch: ["int32", [patch], [1]],
      canvas: ["uint8", canvas, size],
      cache: ["float32", cache, [tokens, ...shape]],
      length: ["int32", [length], []],
      classes: ["int32", classes, [classes.length]],
      guidance: scalar(guidance),
      side_uniform: ["float32", [sideUniform], [1]],
      uniform: ["float32", uniform, [patches, values]],
    });
    cache.set(out.added.data, length * added);
    [canvas, patch] = [out.drawn.data, out.next_patch.data[0]];
    yield [canvas, Number(out.side.data[0]), patch === patches];
  }
}

/** Images of pixels in [-1, 1] from noise to digit; around kept pixels where a mask is given. */
async function* drawPixels({ session, ...about }, digit, seed, guidance, kept, mask) {
  const random = uniforms(seed);
  const size = IMAGE * IMAGE;
  const shape = [1, 1, IMAGE, IMAGE];
  const classes = passes(digit, about.guides ? guidance : 1);
  let x = normals(random, size);
  for (const times of mask ? about.times_around : about.times) {
    const out = await step(session, {
      x: ["float32", x, shape],
      times: ["float32", times, [3]],
      classes: ["int32", classes, [classes.length]],
      guidance: scalar(about.guides ? guidance : 1),
      kept: ["float32", kept ?? new Float32Array(size), shape],
      mask: ["bool", mask ?? new Uint8Array(size), shape],
      normal: ["float32", normals(random, 2 * size), [2, 1, IMAGE, IMAGE]],
    });
    yield out.x_s.data;
    x = out.x_r.data;
  }
}

// --- the page -----------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const erased = new Uint8Array(IMAGE * IMAGE);
let image = new Uint8Array(IMAGE * IMAGE); // as shown, without what is erased
let digit = null;
let restorer = null; // the last one of models.json, which denoises
let run = 0; // counts drawings: a new one stops those before it
let shown = 0; // when the page last had time to show something

function paint(canvas, levels, hole) {
  const side = Math.sqrt(levels.length);
  const pixels = new ImageData(side, side);
  levels.forEach((level, i) => {
    pixels.data.set(hole?.[i] ? [40, 110, 140, 255] : [level, level, level, 255], 4 * i);
  });
  [canvas.width, canvas.height] = [side, side];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function showImage(levels) {
  image = levels;
  paint($("image"), image, erased);
}

function showScan([canvas, side, finished]) {
  const size = Math.sqrt(canvas.length);
  const start = Math.floor((size - side) / 2);
  const scan = new Uint8Array(side * side);
  for (let r = 0; r < side; r++) {
    const from = (start + r) * size + start;
    scan.set(canvas.subarray(from, from + side), r * side);
  }
  paint($("scan"), scan.map((ink) => 255 * ink));
  showImage(toImage(scan, side, !finished));
}

const showPixels = (x) => showImage(Uint8Array.from(x, (value) =>
  Math.min(Math.max(Math.round((value + 1) * 127.5), 0), 255)));

/** Let the page show what is there: at every step of a slow drawing, else once a frame. */
async function breathe() {
  if ($("slowly").checked) {
    await new Promise((done) => setTimeout(done, SLOW));
  } else if (performance.now() - shown > 30) {
    await new Promise(requestAnimationFrame);
  }
  shown = performance.now();
}

/** Draw, show the steps, and say how long it took. Any error becomes a sentence. */
async function draw(name, kept, mask) {
  const mine = ++run;
  $("status").textContent = `${name} is loading.`;
  try {
    const loaded = await model(name);
    if (mine !== run) return;
    const isScan = loaded.family === "scan";
    $("guidance").disabled = !loaded.guides;
    $("scanned").hidden = !isScan;
    $("status").textContent = `${name} is drawing.`;
    const start = performance.now();
    const how = [digit, Number($("seed").value), Number($("guidance").value)];
    const steps = isScan ? drawScan(loaded, ...how) : drawPixels(loaded, ...how, kept, mask);
    let count = 0;
    for await (const canvas of steps) {
      if (mine !== run) return;
      (isScan ? showScan : showPixels)(canvas);
      count += 1;
      await breathe();
    }
    if (mine !== run) return;
    const milliseconds = Math.round(performance.now() - start);
    $("status").textContent = `${name} took ${count} steps and ${milliseconds} ms.`;
    if (!document.body.dataset.drawn) performance.mark("first digit");
    Object.assign(document.body.dataset, { drawn: mine, milliseconds });
  } catch (error) {
    delete loading[name]; // so that the next click tries again
    if (mine === run) $("status").textContent = error.message;
  }
}

function redraw() {
  showErased(() => 0);
  return draw($("model").value);
}

function restore() {
  const kept = Float32Array.from(image, (level) => level / 127.5 - 1);
  const mask = erased.map((hidden) => 1 - hidden);
  showErased(() => 0);
  return draw(restorer, kept, mask);
}

/** Mark as erased the pixels for which the function of row and column is true. */
function showErased(isErased) {
  run += 1; // a drawing that goes on would change the picture under the hand
  erased.forEach((_, i) => { erased[i] = isErased(Math.floor(i / IMAGE), i % IMAGE, erased[i]); });
  showImage(image);
  $("restore").disabled = !erased.includes(1);
}

function rub(event) {
  if (!event.buttons) return;
  const box = $("image").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * IMAGE - 0.5;
  const y = ((event.clientY - box.top) / box.height) * IMAGE - 0.5;
  showErased((row, column, before) => before || Math.hypot(column - x, row - y) < 2.5);
}

function choose(next) {
  digit = next;
  for (const button of $("digits").children) {
    button.setAttribute("aria-pressed", button.textContent === String(digit));
  }
  return redraw();
}

async function open() {
  for (let d = 0; d < 10; d++) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: d });
    button.addEventListener("click", () => choose(d));
    $("digits").append(button);
  }
  try {
    const models = JSON.parse(new TextDecoder().decode(await read("models.json")));
    for (const [name, label] of Object.entries(models)) $("model").append(new Option(label, name));
  } catch (error) {
    $("status").textContent = error.message;
    return;
  }
  restorer = $("model").lastElementChild.value;
  $("restorer").textContent = restorer;
  for (const id of ["model", "seed", "guidance"]) $(id).addEventListener("change", redraw);
  $("guidance").addEventListener("input", () => { $("scale").textContent = $("guidance").value; });
  $("another").addEventListener("click", () => {
    $("seed").value = Number($("seed").value) + 1;
    redraw();
  });
  $("half").addEventListener("click", () => showErased((row) => row >= IMAGE / 2));
  $("restore").addEventListener("click", restore);
  for (const kind of ["pointerdown", "pointermove"]) $("image").addEventListener(kind, rub);
  await choose(3);
}

open();
