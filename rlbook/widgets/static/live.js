// Live curves on a canvas, with the buttons and sliders of the run behind them.
//
// The page keeps the history; the kernel sends only what is new, ten times a second.
//   kernel -> page  {kind: "data", curves: [{key, start, end, points}], state}  and one float32 buffer: x, y of each curve
//                   {kind: "state", state}    {kind: "clear", state}
//   page -> kernel  {kind: "hello"}  asks for everything (a late view, or a gap between `start` and what we have)
//                   {kind: "command", name, id}    {kind: "param", name, value, id}
// `points` < `end - start` says that the kernel thinned old points to peaks; then the means that a smooth curve follows come after y.

const COLORS = 6;
const ICONS = {
  play: "M2 1l9 5-9 5z", pause: "M2 1h3v10H2zM7 1h3v10H7z", step: "M1 1l6 5-6 5zM8 1h2.5v10H8z", stop: "M2 2h8v8H2z",
};
const STATUS = { idle: "Ready", running: "Running", paused: "Paused", stopped: "Stopped", done: "Done", failed: "Failed" };

// ---------------------------------------------------------------------------------------------------------- the numbers

/** A curve that grows, with its exponential moving average (without bias towards 0; NaN is skipped). */
class Curve {
  constructor(decay) {
    this.n = 0; // points kept
    this.seen = 0; // points that the kernel has sent us, thinned ones included
    this.x = new Float32Array(256);
    this.y = new Float32Array(256);
    this.mean = new Float32Array(256);
    this.s = new Float32Array(256);
    this.stride = []; // [from index, points that one point stands for]
    this.restart(decay);
  }
  restart(decay) {
    this.decay = decay;
    this.total = this.weight = this.smoothed = 0;
  }
  push(xs, ys, means, stride) {
    const n = this.n + xs.length;
    if (n > this.x.length) {
      for (const name of ["x", "y", "mean", "s"]) {
        const grown = new Float32Array(2 * n);
        grown.set(this[name].subarray(0, this.n));
        this[name] = grown;
      }
    }
    this.x.set(xs, this.n);
    this.y.set(ys, this.n);
    this.mean.set(means, this.n);
    if (!this.stride.length || this.stride.at(-1)[1] !== stride) this.stride.push([this.n, stride]);
    this.n = n;
    this.smooth(this.decay);
  }
  smooth(decay) {
    if (decay !== this.decay) this.restart(decay);
    let part = 0;
    for (let i = this.smoothed; i < this.n; i++) {
      while (part + 1 < this.stride.length && this.stride[part + 1][0] <= i) part++;
      const keep = decay ** this.stride[part][1];
      if (Number.isFinite(this.mean[i])) {
        this.total = keep * this.total + (1 - keep) * this.mean[i];
        this.weight = keep * this.weight + 1 - keep;
      }
      this.s[i] = this.weight ? this.total / this.weight : NaN;
    }
    this.smoothed = this.n;
  }
  /** Index of the point nearest to x. */
  nearest(x) {
    let low = 0, high = this.n - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.x[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - this.x[low - 1] < this.x[low] - x ? low - 1 : low;
  }
}

/** All curves of one model and the newest state of its run; every view of the model reads it. */
class Store {
  constructor(model) {
    this.model = model;
    this.config = model.get("config");
    this.state = this.config.state;
    this.decay = this.config.smoothing;
    this.curves = new Map();
    this.listeners = new Set();
    this.asked = false;
    this.commands = 0;
    model.on("msg:custom", (message, buffers) => this.receive(message, buffers));
    this.hello();
  }
  hello() {
    if (!this.asked) this.model.send({ kind: "hello" });
    this.asked = true;
  }
  send(message) {
    this.model.send({ ...message, id: ++this.commands });
  }
  receive(message, buffers) {
    if (message.kind === "clear") this.curves.clear();
    if (message.kind === "data") this.append(message.curves, floats(buffers[0]));
    if (message.state) this.state = message.state;
    this.listeners.forEach((listener) => listener());
  }
  append(curves, numbers) {
    let at = 0, gap = false;
    for (const { key, start, end, points } of curves) {
      const take = () => numbers.subarray(at, (at += points));
      const xs = take(), ys = take(), means = points < end - start ? take() : ys;
      let curve = this.curves.get(key);
      if (start === 0) this.curves.set(key, (curve = new Curve(this.decay)));
      if (!curve || start > curve.seen) gap = true;
      else if (start === curve.seen) {
        curve.push(xs, ys, means, (end - start) / points);
        curve.seen = end;
      }
    }
    if (gap) this.hello();
    else if (curves.length) this.asked = false;
  }
  smoothing(decay) {
    this.decay = decay;
    for (const curve of this.curves.values()) curve.smooth(decay);
    this.listeners.forEach((listener) => listener());
  }
  groups() {
    return this.config.groups ?? [...this.curves.keys()].map((key) => [key]);
  }
}

function floats(buffer) {
  const bytes = buffer instanceof DataView ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer;
  return new Float32Array(bytes);
}

// ---------------------------------------------------------------------------------------------------------- words and numbers

/** Three or four digits: 0.0341, 312.4, 1,234, 20.5k, 3.2e-5. */
function short(v) {
  if (v === undefined || v === null || Number.isNaN(v)) return "–";
  const size = Math.abs(v);
  if (size === Infinity) return v > 0 ? "∞" : "−∞";
  for (const [limit, divisor, unit] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]]) {
    if (size >= limit) return +(v / divisor).toPrecision(4) + unit;
  }
  if (size >= 1000) return Math.round(v).toLocaleString("en-US");
  return v !== 0 && size < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(size < 1 ? 3 : 4));
}

function clock(seconds) {
  const s = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${pad(s % 60)}` : `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}`;
}

/** Round numbers between low and high, about `count` of them, and how to write them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((m) => m * power >= rough) ?? 10);
  const places = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) places.push(k * step);
  const most = Math.max(Math.abs(low), Math.abs(high));
  const [divisor, unit] = most >= 1e9 ? [1e9, "G"] : most >= 1e6 ? [1e6, "M"] : most >= 1e4 ? [1e3, "k"] : [1, ""];
  const small = most < 1e-3;
  const digits = Math.min(8, Math.max(0, Math.ceil(-Math.log10(step / divisor) + (step / power === 2.5 ? 1 : 0) - 1e-9)));
  return { places, write: (v) => (v === 0 ? "0" : small ? v.toExponential(1) : (v / divisor).toFixed(digits) + unit) };
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && name !== "style") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function icon(name) {
  return `<svg viewBox="0 0 12 12" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
}

// ---------------------------------------------------------------------------------------------------------- one panel

/** The curves that share one pair of axes. */
class Panel {
  constructor(view, keys, firstColor) {
    this.view = view;
    this.keys = keys;
    this.legend = make("div", { className: "legend" });
    this.entries = keys.map((key, i) => {
      const value = make("b"), name = make("em", { textContent: key, title: key });
      this.legend.append(make("span", { style: `color: var(--c${(firstColor + i) % COLORS})` }, make("i"), name, value));
      return { key, value, tone: value };
    });
    this.canvas = make("canvas", { tabIndex: 0, style: `height: ${view.store.config.height}px` });
    this.canvas.setAttribute("role", "img");
    this.node = make("div", { className: "panel" }, this.legend, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => view.look(null));
    this.canvas.addEventListener("blur", () => view.look(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }
  curves() {
    return this.entries.flatMap((entry) => {
      const curve = this.view.store.curves.get(entry.key);
      return curve?.n ? [{ ...entry, curve }] : [];
    });
  }
  point(pixel) {
    const box = this.box;
    if (box) this.view.look(box.x0 + ((pixel - box.left) / box.width) * (box.x1 - box.x0));
  }
  key(event) {
    const first = this.curves()[0]?.curve;
    if (!first) return;
    const jump = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
    const now = this.view.cursor === null ? first.n - 1 : first.nearest(this.view.cursor);
    let to = null;
    if (jump) to = Math.min(first.n - 1, Math.max(0, now + jump * Math.max(1, Math.round(first.n / 200))));
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = first.n - 1;
    else if (event.key !== "Escape") return;
    event.preventDefault();
    this.view.look(to === null ? null : first.x[to]);
  }

  /** Draw everything anew: decimated to the lowest and highest value of each pixel, so the cost does not grow with the picture. */
  draw() {
    const { canvas, view } = this, cursor = view.cursor, config = view.store.config;
    const width = canvas.clientWidth, height = config.height, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d"), tones = view.tones();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${tones.font}`;
    const curves = this.curves();
    const [x0, x1] = span(curves.map(({ curve }) => [curve.x[0], curve.x[curve.n - 1]]), view.store.state.total ?? 1);
    const raw = curves.map(({ curve }) => trace(curve.x, curve.y, curve.n, x0, x1, width));
    const smooth = curves.map(({ curve }) => trace(curve.x, curve.s, curve.n, x0, x1, width));
    const targets = this.keys.filter((key) => key in (view.store.state.target ?? {})).map((key) => view.store.state.target[key]);
    const [y0, y1] = this.range(raw, smooth, targets);

    const rows = ticks(y0, y1, height / 42);
    if (!curves.length && !targets.length) rows.places = [];
    const left = Math.ceil(Math.max(22, ...rows.places.map((v) => pen.measureText(rows.write(v)).width))) + 8;
    const box = (this.box = { left, top: 8, width: width - left - 8, height: height - 30, x0, x1 });
    const px = (x) => left + ((x - x0) / (x1 - x0)) * box.width, py = (y) => box.top + (1 - (y - y0) / (y1 - y0)) * box.height;

    pen.strokeStyle = tones.line;
    pen.fillStyle = tones.muted;
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const v of rows.places) {
      line(pen, left, crisp(py(v)), left + box.width, crisp(py(v)));
      pen.fillText(rows.write(v), left - 7, py(v));
    }
    const cols = ticks(x0, x1, Math.min(8, box.width / 80));
    pen.textBaseline = "alphabetic";
    for (const v of cols.places) {
      const label = cols.write(v), half = pen.measureText(label).width / 2;
      pen.textAlign = "center";
      if (cursor === null || Math.abs(px(v) - px(cursor)) > 60) pen.fillText(label, Math.min(px(v), width - half), height - 6);
      line(pen, crisp(px(v)), box.top + box.height, crisp(px(v)), box.top + box.height + 4);
    }

    pen.save();
    pen.beginPath();
    pen.rect(left, 0, box.width + 8, box.top + box.height + 1);
    pen.clip();
    pen.lineJoin = "bevel"; // round joins of a thousand points cost more than all the rest
    const plain = view.store.decay === 0;
    curves.forEach(({ tone }, i) => {
      pen.strokeStyle = getComputedStyle(tone).color;
      if (!plain) stroke(pen, raw[i], px, py, 1, 0.28);
    });
    for (const level of targets) {
      pen.strokeStyle = pen.fillStyle = tones.muted;
      pen.setLineDash([5, 4]);
      pen.lineWidth = 1;
      line(pen, left, crisp(py(level)), left + box.width, crisp(py(level)));
      pen.setLineDash([]);
      pen.textAlign = "left";
      const below = py(level) < box.top + 12;
      pen.fillText(`target ${short(level)}`, left + 6, py(level) + (below ? 13 : -5));
    }
    curves.forEach(({ tone, curve }, i) => {
      pen.strokeStyle = pen.fillStyle = getComputedStyle(tone).color;
      stroke(pen, plain ? raw[i] : smooth[i], px, py, 2, 1);
      if (cursor === null) dot(pen, px(curve.x[curve.n - 1]), py(curve.s[curve.n - 1]), 3);
    });
    pen.restore();
    if (cursor !== null && curves.length) this.cross(pen, curves, cursor, px, py, tones);
    this.label(curves, cursor);
  }
  /** The vertical line under the pointer, with a point on each curve. */
  cross(pen, curves, cursor, px, py, tones) {
    const { box } = this, at = curves[0].curve.x[curves[0].curve.nearest(cursor)], x = px(at);
    pen.strokeStyle = tones.muted;
    pen.lineWidth = 1;
    line(pen, crisp(x), box.top, crisp(x), box.top + box.height);
    for (const { tone, curve } of curves) {
      const i = curve.nearest(cursor);
      pen.fillStyle = getComputedStyle(tone).color;
      if (Number.isFinite(curve.s[i])) dot(pen, px(curve.x[i]), py(curve.s[i]), 4);
    }
    const text = `${this.view.store.config.x} ${at.toLocaleString("en-US")}`, wide = pen.measureText(text).width + 12;
    const from = Math.min(Math.max(x - wide / 2, box.left), box.left + box.width + 8 - wide);
    pen.fillStyle = tones.ink;
    pen.beginPath();
    pen.roundRect(from, box.top + box.height + 3, wide, 17, 4);
    pen.fill();
    pen.fillStyle = tones.card;
    pen.textAlign = "left";
    pen.fillText(text, from + 6, box.top + box.height + 15.5);
  }
  /** The newest numbers, or those under the pointer, beside the names and for screen readers. */
  label(curves, cursor) {
    const said = curves.map(({ key, value, curve }) => {
      const i = cursor === null ? curve.n - 1 : curve.nearest(cursor);
      const raw = cursor === null || this.view.store.decay === 0 ? "" : ` (raw ${short(curve.y[i])})`;
      value.textContent = short(curve.s[i]) + (curves.length === 1 ? raw : "");
      return `${key} ${short(curve.s[i])}${raw} at ${this.view.store.config.x} ${short(curve.x[i])}`;
    });
    this.canvas.setAttribute("aria-label", `Curve of ${said.join("; ") || this.keys.join(", ") + ", no data yet"}. Arrow keys read it.`);
  }
  /** What the vertical axis shows: the smooth curve and the target whole, the raw one without its rarest peaks. */
  range(raw, smooth, targets) {
    const peaks = raw.flatMap((points) => [...points.filter((_, i) => i % 2)].filter(Number.isFinite)).sort((a, b) => a - b);
    const cut = peaks.length > 60 ? Math.floor(peaks.length * 0.01) : 0;
    const smoothed = smooth.flatMap((points) => [...points.filter((_, i) => i % 2)].filter(Number.isFinite));
    const all = [...peaks.slice(cut, peaks.length - cut), ...smoothed, ...targets, ...(smoothed.length ? [] : [0])];
    const [low, high] = all.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const pad = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 && low < pad ? 0 : low - pad, high + pad];
  }
}

function span(pairs, otherwise) {
  const low = Math.min(...pairs.map(([a]) => a)), high = Math.max(...pairs.map(([, b]) => b));
  return Number.isFinite(low) ? (high > low ? [low, high] : [low - 0.5, low + 0.5]) : [0, otherwise];
}

/** Thin a curve to the lowest and the highest point of each pixel column: [x, y, x, y, ...], NaN where it breaks. */
function trace(x, y, n, x0, x1, width) {
  const points = [];
  if (n <= 2 * width) {
    for (let i = 0; i < n; i++) points.push(x[i], y[i]);
    return points;
  }
  const scale = width / (x1 - x0);
  let column = -1, low = -1, high = -1;
  const flush = () => {
    for (const i of low < high ? [low, high] : [high, low]) if (i >= 0) points.push(x[i], y[i]);
  };
  for (let i = 0; i < n; i++) {
    const c = Math.floor((x[i] - x0) * scale);
    if (c !== column) {
      flush();
      column = c;
      low = high = -1;
    }
    if (Number.isFinite(y[i])) {
      if (low < 0 || y[i] < y[low]) low = i;
      if (high < 0 || y[i] >= y[high]) high = i;
    }
  }
  flush();
  return points;
}

function stroke(pen, points, px, py, width, alpha) {
  pen.beginPath();
  let broken = true;
  for (let i = 0; i < points.length; i += 2) {
    if (!Number.isFinite(points[i + 1])) broken = true;
    else {
      pen[broken ? "moveTo" : "lineTo"](px(points[i]), py(points[i + 1]));
      broken = false;
    }
  }
  pen.lineWidth = width;
  pen.globalAlpha = alpha;
  pen.stroke();
  pen.globalAlpha = 1;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

const crisp = (v) => Math.round(v) + 0.5;

// ---------------------------------------------------------------------------------------------------------- the whole view

class View {
  constructor(store, el) {
    this.store = store;
    this.cursor = null;
    this.panels = [];
    this.waiting = null; // a command that the kernel has not answered: {id, since}
    this.root = make("div", { className: "rlb rlb-live" });
    this.build();
    el.replaceChildren(this.root);
    this.stop = new AbortController();
    this.listener = () => this.schedule();
    store.listeners.add(this.listener);
    this.resized = new ResizeObserver(() => this.schedule());
    this.resized.observe(this.root);
    this.themed = new MutationObserver(() => this.retone());
    for (const node of [document.documentElement, document.body]) this.themed.observe(node, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.retone(), { signal: this.stop.signal });
    this.schedule();
  }
  dispose() {
    this.store.listeners.delete(this.listener);
    this.resized.disconnect();
    this.themed.disconnect();
    this.stop.abort();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.patience);
  }
  build() {
    const { config } = this.store;
    this.status = make("span", { className: "pill" });
    this.status.setAttribute("role", "status");
    this.bar = make("div");
    this.progress = make("div", { className: "progress" }, this.bar);
    this.progress.setAttribute("role", "progressbar");
    this.progress.setAttribute("aria-label", "Progress of the run");
    this.facts = make("div", { className: "facts" });
    this.head = make("div", { className: "bar" }, make("h3", { textContent: config.title || "Run" }), this.status);
    this.go = this.button("", "Start", () => this.command(this.store.state.status === "running" ? "pause" : "resume"));
    this.one = this.button("step", "Step", () => this.command("step"));
    this.halt = this.button("stop", "Stop", () => this.command("stop"));
    this.one.title = "Do one step, then pause";
    this.halt.title = "End the run; its results are kept";
    this.buttons = make("div", { className: "bar" }, this.go, this.one, this.halt);
    this.buttons.setAttribute("role", "group");
    this.buttons.setAttribute("aria-label", "Run");
    this.controls = make("div", { className: "bar controls" }, this.buttons, this.smoother());
    this.note = make("p", { className: "note", hidden: true });
    this.note.setAttribute("role", "alert");
    this.grid = make("div", { className: "panels" });
    this.sliders = make("div", { className: "sliders" });
    this.inputs = Object.entries(config.sliders ?? {}).map(([name, slider]) => this.slider(name, slider));
    this.root.append(this.head, this.progress, this.facts, this.controls, this.note, this.grid);
    if (this.inputs.length) this.root.append(this.sliders);
    if (!config.title && !config.sliders) this.head.hidden = true;
  }
  button(name, text, act) {
    const node = make("button", { type: "button", innerHTML: name && icon(name) }, text);
    node.addEventListener("click", act);
    return node;
  }
  smoother() {
    const input = make("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: this.store.decay });
    const output = make("span", { className: "out", textContent: this.store.decay.toFixed(2) });
    input.addEventListener("input", () => {
      output.textContent = (+input.value).toFixed(2);
      this.store.smoothing(+input.value);
    });
    return make("label", { className: "push" }, "Smoothing", input, output);
  }
  slider(name, { low, high, scale }) {
    const log = scale === "log";
    const value = (t) => +(log ? low * (high / low) ** t : low + t * (high - low)).toPrecision(3);
    const place = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
    const input = make("input", { type: "range", min: 0, max: 1, step: 0.002 });
    const output = make("span", { className: "out" }); // not <output>: the label would belong to it
    const write = (v) => {
      output.textContent = short(v);
      input.setAttribute("aria-valuetext", short(v));
    };
    let timer = null, touched = 0;
    input.addEventListener("input", () => {
      touched = Date.now();
      write(value(+input.value));
      timer ??= setTimeout(() => {
        timer = null;
        this.send({ kind: "param", name, value: value(+input.value) });
      }, 50);
    });
    const ends = [low, high].map((v) => make("small", { textContent: short(v) }));
    this.sliders.append(make("label", {}, make("em", { textContent: name }), output, input, ...ends));
    return () => {
      const now = this.store.state.params?.[name];
      input.disabled = this.store.state.blocked && this.store.state.status === "running";
      if (now === undefined || Date.now() - touched < 1000) return;
      input.value = place(now);
      write(now);
    };
  }
  command(name) {
    if (this.store.state.blocked) this.kernel()?.interrupt?.(); // the kernel would read the message only after the run
    else this.send({ kind: "command", name });
  }
  /** The kernel's connection, where the front end lets a widget see it. */
  kernel() {
    return this.store.model.widget_manager?.kernel;
  }
  /** Tell the kernel, and tell the reader when it is too busy to answer. */
  send(message) {
    this.store.send(message);
    this.waiting ??= { id: this.store.commands };
    clearTimeout(this.patience);
    this.patience = setTimeout(() => this.schedule(), 1500);
    this.waiting.since = performance.now();
  }
  look(x) {
    if (x === this.cursor) return;
    this.cursor = x;
    this.schedule();
  }
  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }
  retone() {
    this.palette = null;
    this.schedule();
  }
  tones() {
    return (this.palette ??= (() => {
      const style = getComputedStyle(this.root), probe = getComputedStyle(this.facts);
      return { ink: style.color, card: style.backgroundColor, line: style.borderTopColor, muted: probe.color, font: style.fontFamily };
    })());
  }
  arrange() {
    const groups = this.store.groups(), width = this.grid.clientWidth, plan = JSON.stringify([groups, width]);
    if (plan === this.plan) return;
    this.plan = plan;
    if (JSON.stringify(groups) !== this.arranged) {
      this.arranged = JSON.stringify(groups);
      let color = 0;
      this.panels = groups.map((keys) => {
        color += keys.length;
        return new Panel(this, keys, color - keys.length);
      });
      this.grid.replaceChildren(...this.panels.map((panel) => panel.node));
    }
    const count = groups.length, columns = Math.max(1, Math.min(count, count > 4 ? 3 : 2, Math.floor(width / 260)));
    this.grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    if (count) this.panels[0].node.style.gridColumn = `span ${columns - (count % columns || columns) + 1}`;
  }
  draw() {
    const { state } = this.store;
    this.describe(state);
    this.inputs.forEach((follow) => follow());
    this.arrange();
    this.panels.forEach((panel) => panel.draw());
  }
  describe(state) {
    const run = state.status !== undefined, live = state.status === "running" || state.status === "paused";
    for (const node of [this.progress, this.facts, this.status, this.buttons]) node.hidden = !run;
    if (!run) return;
    if (this.status.textContent !== STATUS[state.status]) this.status.textContent = STATUS[state.status];
    this.root.dataset.status = state.status;
    const part = state.total ? Math.min(1, state.done / state.total) : null;
    this.progress.classList.toggle("endless", part === null && live);
    this.bar.style.width = part === null ? (live ? "" : "100%") : `${100 * part}%`;
    if (part === null) this.progress.removeAttribute("aria-valuenow");
    else this.progress.setAttribute("aria-valuenow", Math.round(100 * part));
    const of = state.total ? ` of ${state.total.toLocaleString("en-US")}` : "";
    const facts = [
      [Math.round(state.done).toLocaleString("en-US"), `${of} ${state.unit}`],
      [short(+(state.rate ?? 0).toPrecision(3)), ` ${state.unit}/s`],
      [clock(state.elapsed), " elapsed"],
    ];
    if (live && state.total && state.rate) facts.push([clock((state.total - state.done) / state.rate), " left"]);
    this.facts.replaceChildren(...facts.map(([value, rest]) => make("span", {}, make("b", { textContent: value }), rest)));
    this.press(state, live);
    this.remark(state, live);
  }
  press(state, live) {
    const [name, text] = { idle: ["play", "Start"], paused: ["play", "Resume"] }[state.status] ?? ["pause", "Pause"];
    if (this.go.textContent !== text) this.go.innerHTML = icon(name) + text;
    const rests = state.status === "paused" || state.status === "idle";
    this.go.classList.toggle("primary", rests);
    this.go.disabled = !live && !rests;
    this.one.disabled = !rests;
    this.halt.disabled = !live;
    if (!state.blocked) return;
    this.go.disabled = this.one.disabled = true;
    this.buttons.hidden = !this.kernel();
  }
  remark(state, live) {
    if (this.waiting && state.ack >= this.waiting.id) this.waiting = null;
    const late = this.waiting && live && performance.now() - this.waiting.since > 1400;
    let text = "";
    if (state.error) text = state.error;
    else if (late) text = "The kernel is busy with a cell and will see your click when that ends. To stop now, interrupt the kernel (■).";
    else if (state.blocked && live) {
      text = "A cell is busy with this run: ";
      text += this.kernel() ? "only Stop can reach it." : "interrupt the kernel (■) to stop it.";
      text += " Results are kept.";
    }
    this.note.classList.toggle("bad", Boolean(state.error));
    this.note.hidden = !text;
    if (this.note.textContent !== text) this.note.textContent = text;
  }
}

export default () => {
  let store;
  return {
    initialize({ model }) {
      store = new Store(model);
    },
    render({ model, el }) {
      store ??= new Store(model);
      const view = new View(store, el);
      return () => view.dispose();
    },
  };
};
