
// A reading works in three layers: numbers (unpack what the page carries), characters (one glyph for each
// character of the text, with the bytes it stands for), and shades (a level of the ramp for each character).
// Text is written as text nodes only. Characters get an element of their own when they come near the
// window, and a new choice only changes the classes of those elements.

const NAMES = {
  surprise: "surprise", loss: "loss", bits: "bits paid", step_size: "step size", momentum: "momentum", decay: "decay",
};
const MEANINGS = {
  surprise: "how surprised the memory was (norm of the inner gradient)",
  loss: "how wrong the memory was (inner loss before the write)",
  bits: "what the model paid for it (bits)",
  step_size: "how far the memory stepped (inner learning rate)",
  momentum: "how much of past surprise it carried on (momentum)",
  decay: "how much it forgot (decay)",
};
const ALL = "mean";

// ---------------------------------------------------------------------------------------------- numbers

function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// A packed array: rows of `length` codes of `width` bytes, each row on its own scale (pack.py).
class Rows {
  constructor(packed, length) {
    this.packed = packed;
    this.length = length;
    this.heads = packed.heads || 1;
    this.codes = null;
  }

  at(row, position) {
    const {width, low, step, log, data} = this.packed;
    if (!this.codes) this.codes = bytesOf(data);
    const index = row * this.length + position;
    const code = width === 2 ? this.codes[2 * index] | (this.codes[2 * index + 1] << 8) : this.codes[index];
    if (code === 0) return NaN;
    const value = low[row] + (code - 1) * step[row];
    return log[row] ? Math.exp(value) : value;
  }

  // Rows of a layer and head; either may be "mean", and a mean is all there is where heads were not kept.
  rowsOf(layer, head, layers) {
    const rows = [];
    for (let l = 0; l < layers; l++) {
      if (layer !== ALL && Number(layer) !== l) continue;
      for (let h = 0; h < this.heads; h++) {
        if (head === ALL || this.heads === 1 || Number(head) === h) rows.push(l * this.heads + h);
      }
    }
    return rows;
  }

  // The mean of what is known over some rows and the positions start <= t < stop.
  mean(rows, start, stop) {
    let sum = 0, count = 0;
    for (const row of rows) {
      for (let t = start; t < stop; t++) {
        const value = this.at(row, t);
        if (!Number.isNaN(value)) { sum += value; count++; }
      }
    }
    return count ? sum / count : NaN;
  }
}

function quantile(sorted, part) {
  const at = part * (sorted.length - 1), below = Math.floor(at), above = Math.ceil(at);
  return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

// Values to shades in [0, 1] (NaN stays NaN), and the values at the low end, middle and high end.
function scaleOf(values, byRank) {
  const sorted = values.filter(value => !Number.isNaN(value)).sort();
  if (!sorted.length) return {shades: values, ends: [NaN, NaN, NaN]};
  if (byRank) {
    // Equal values share the middle of their ranks.
    const rank = new Map();
    for (let i = 0; i < sorted.length;) {
      let j = i;
      while (j < sorted.length && sorted[j] === sorted[i]) j++;
      rank.set(sorted[i], sorted.length > 1 ? (i + j - 1) / 2 / (sorted.length - 1) : 0.5);
      i = j;
    }
    return {shades: values.map(value => rank.get(value) ?? NaN), ends: [0, 0.5, 1].map(p => quantile(sorted, p))};
  }
  const low = quantile(sorted, 0.01), high = quantile(sorted, 0.99);
  const shade = value => (high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5);
  return {shades: values.map(value => (Number.isNaN(value) ? NaN : shade(value))), ends: [low, (low + high) / 2, high]};
}

// ------------------------------------------------------------------------------------------- characters

const JOINS = /^[\p{M}\u200d\ufe00-\ufe0f\u{1f3fb}-\u{1f3ff}]$/u;

// Bytes of the UTF-8 character that starts at `at`; 1 if none does.
function sizeAt(bytes, at) {
  const first = bytes[at];
  const size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 1;
  for (let i = 1; i < size; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return 1;
  return size;
}

function glyphOf(code) {
  if (code === 10 || code === 9) return String.fromCharCode(code);
  if (code < 32) return String.fromCharCode(0x2400 + code);
  if (code === 127) return "\u2421";
  return code < 128 ? String.fromCharCode(code) : "\ufffd";
}

// The glyphs of a text and where each starts; `starts` has one more entry, the end of the text.
function charactersOf(bytes) {
  const decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  const glyphs = [], starts = [];
  for (let at = 0; at < bytes.length;) {
    const size = sizeAt(bytes, at);
    let glyph = size === 1 ? glyphOf(bytes[at]) : decoder.decode(bytes.subarray(at, at + size));
    const last = glyphs.length - 1;
    const joins = size > 1 && last >= 0 && glyphs[last] !== "\n" && (JOINS.test(glyph) || glyphs[last].endsWith("\u200d"));
    if (joins) {
      glyphs[last] += glyph;
    } else {
      glyphs.push(glyph);
      starts.push(at);
    }
    at += size;
  }
  starts.push(bytes.length);
  return {glyphs, starts};
}

// ------------------------------------------------------------------------------------------ surprise map

const BLOCK = 1024;
const BARS = 260;

class SurpriseMap {
  constructor(map) {
    this.map = map;
    this.bytes = bytesOf(map.text);
    Object.assign(this, charactersOf(this.bytes));
    this.rows = {bits: new Rows(map.bits, this.bytes.length)};
    for (const name in map.quantities) this.rows[name] = new Rows(map.quantities[name], this.bytes.length);
    this.levels = [];
    this.version = 0;
    this.current = -1;
  }

  // The value of one character: the mean over its bytes, and over the layers and heads of a "mean".
  value(name, layer, head, index) {
    const rows = name === "bits" ? [0] : this.rows[name].rowsOf(layer, head, this.map.layers.length);
    return this.rows[name].mean(rows, this.starts[index], this.starts[index + 1]);
  }

  values(name, layer, head) {
    const rows = name === "bits" ? [0] : this.rows[name].rowsOf(layer, head, this.map.layers.length);
    return Float64Array.from(this.glyphs, (_, i) => this.rows[name].mean(rows, this.starts[i], this.starts[i + 1]));
  }

  // Put the text into `box`: blocks of plain text, which turn into characters when they come near.
  mount(box) {
    this.box = box;
    this.blocks = [];
    const whole = document.createDocumentFragment();
    for (let start = 0; start < this.glyphs.length; start += BLOCK) {
      const stop = Math.min(start + BLOCK, this.glyphs.length);
      const node = document.createElement("span");
      node.textContent = this.glyphs.slice(start, stop).join("");
      node.block = this.blocks.push({node, start, stop, characters: null, version: -1}) - 1;
      whole.append(node);
    }
    box.replaceChildren(whole);
    box.scrollTop = 0;
    this.observer = new IntersectionObserver(entries => {
      for (const entry of entries) {
        const block = this.blocks[entry.target.block];
        block.near = entry.isIntersecting;
        if (block.near) this.paint(block);
      }
    }, {root: box, rootMargin: "400px 0px"});
    for (const block of this.blocks) this.observer.observe(block.node);
  }

  unmount() {
    this.observer.disconnect();
  }

  fill(block) {
    if (block.characters) return;
    block.characters = [];
    for (let i = block.start; i < block.stop; i++) {
      const node = document.createElement("i");
      node.textContent = this.glyphs[i];
      node.index = i;
      block.characters.push(node);
    }
    block.node.replaceChildren(...block.characters);
  }

  paint(block) {
    this.fill(block);
    if (block.version === this.version) return;
    block.version = this.version;
    block.characters.forEach((node, i) => {
      const index = block.start + i, level = this.levels[index];
      node.className = (level < 0 ? "gap" : `s${level}`) + (this.glyphs[index] === "\n" ? " end" : "")
        + (index === this.current ? " at" : "");
    });
  }

  // Shade every character by `levels`; those far from the window follow when they come near.
  shade(levels) {
    this.levels = levels;
    this.version++;
    for (const block of this.blocks) if (block.near) this.paint(block);
  }

  blockOf(index) {
    return this.blocks[Math.floor(index / BLOCK)];
  }

  node(index) {
    const block = this.blockOf(index);
    this.paint(block);
    return block.characters[index - block.start];
  }

  point(index) {
    if (this.current >= 0) this.node(this.current).classList.remove("at");
    this.current = index;
    this.node(index).classList.add("at");
  }

  // The first character whose line ends below `y`, in the box's own coordinates.
  characterAt(y) {
    let low = 0, high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle].node.offsetTop <= y) low = middle; else high = middle - 1;
    }
    const block = this.blocks[low];
    this.fill(block);
    let first = 0, last = block.characters.length - 1;
    while (first < last) {
      const middle = (first + last) >> 1, node = block.characters[middle];
      if (node.offsetTop + node.offsetHeight > y) last = middle; else first = middle + 1;
    }
    return block.start + first;
  }

  scrollTo(index) {
    const node = this.node(index);
    this.box.scrollTop = node.offsetTop - this.box.clientHeight / 2;
  }

  indexOfByte(position) {
    let low = 0, high = this.glyphs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= position) low = middle; else high = middle - 1;
    }
    return low;
  }
}

function startMap() {
  const maps = page.maps.map(map => () => new SurpriseMap(map));
  const made = [];
  const box = element("text"), strip = element("strip");
  const selects = Object.fromEntries(["text", "quantity", "layer", "head", "scale"].map(n => [n, element(`choose-${n}`)]));
  let map = null;

  function chooseText() {
    const number = Number(selects.text.value);
    if (map) map.unmount();
    map = made[number] ??= maps[number]();
    const {layers, heads, quantities} = map.map;
    const names = Object.keys(NAMES).filter(name => name === "bits" || name in quantities);
    fillSelect(selects.quantity, names.map(name => [name, NAMES[name]]), selects.quantity.value);
    fillSelect(selects.layer, [[ALL, layers.length > 1 ? "mean of all" : layers[0]], ...(layers.length > 1 ? layers.map((name, i) => [i, name]) : [])], selects.layer.value);
    fillSelect(selects.head, [[ALL, heads > 1 ? "mean of all" : "1"], ...(heads > 1 ? Array.from({length: heads}, (_, i) => [i, i + 1]) : [])], selects.head.value);
    map.mount(box);
    shade();
  }

  function shade() {
    const name = selects.quantity.value, perByte = name === "bits", kept = perByte || map.rows[name].heads > 1;
    selects.layer.disabled = perByte;
    selects.head.disabled = perByte || !kept;
    selects.head.title = kept || map.map.heads === 1 ? "" : "only the mean over heads was kept, to keep the page small";
    const values = map.values(name, selects.layer.value, selects.head.value);
    const {shades, ends} = scaleOf(values, selects.scale.value === "rank");
    const top = page.levels - 1;
    map.shade(Int8Array.from(shades, shade => (Number.isNaN(shade) ? -1 : Math.round(shade * top))));
    drawStrip(shades);
    const clipped = selects.scale.value === "value";
    element("legend-low").textContent = (clipped ? "≤ " : "") + show(ends[0]);
    element("legend-middle").textContent = show(ends[1]);
    element("legend-high").textContent = (clipped ? "≥ " : "") + show(ends[2]);
    element("map-caption").textContent = caption(name, values);
    if (map.current < 0) map.point(mostStriking(shades));
    readOut();
  }

  function caption(name, values) {
    const gaps = values.some(Number.isNaN) ? " A dotted underline marks characters without a value." : "";
    const scale = selects.scale.value === "rank" ? "by rank" : "between the 1st and 99th percentile";
    const wide = Math.round(map.glyphs.length / BARS), bar = wide > 1 ? `the mean over ${wide} characters` : "a character";
    return `Each character of the text is shaded by ${MEANINGS[name]}, ${scale}. The strip shows the whole text, `
      + `each bar ${bar}; click it to go there.${gaps}`;
  }

  // Where the read-out starts: the most shaded character of what is in sight at first.
  function mostStriking(shades) {
    let best = 0;
    for (let i = 0; i < Math.min(500, shades.length); i++) if (shades[i] >= (shades[best] || 0)) best = i;
    return best;
  }

  function drawStrip(shades) {
    const bars = Math.min(BARS, shades.length), means = [];
    for (let bar = 0; bar < bars; bar++) {
      let sum = 0, count = 0;
      const stop = Math.floor((bar + 1) / bars * shades.length);
      for (let i = Math.floor(bar / bars * shades.length); i < stop; i++) {
        if (!Number.isNaN(shades[i])) { sum += shades[i]; count++; }
      }
      means.push(count ? sum / count : NaN);
    }
    const highest = Math.max(...means.filter(mean => !Number.isNaN(mean)), 1e-9);
    const svg = element("strip-bars");
    svg.setAttribute("viewBox", `0 0 ${bars} 1`);
    svg.replaceChildren(...means.map((mean, bar) => {
      const part = Number.isNaN(mean) ? 0 : mean / highest, height = 0.9 * part;
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("class", `s${Math.round((0.2 + 0.8 * part) * (page.levels - 1))}`);
      for (const [key, value] of Object.entries({x: bar + 0.08, y: 1 - height, width: 0.84, height})) rect.setAttribute(key, value);
      return rect;
    }));
  }

  // What the window shows, on the strip.
  function moveWindow() {
    const first = map.characterAt(box.scrollTop), last = map.characterAt(box.scrollTop + box.clientHeight);
    const count = map.glyphs.length, node = element("strip-window");
    node.style.left = `${100 * first / count}%`;
    node.style.width = `${Math.max(0.4, 100 * (last - first) / count)}%`;
  }

  function readOut() {
    const index = map.current, start = map.starts[index], stop = map.starts[index + 1], glyph = map.glyphs[index];
    const number = position => position.toLocaleString("en");
    const range = stop - start > 1 ? `bytes ${number(start + 1)}–${number(stop)}` : `byte ${number(start + 1)}`;
    const cells = [[`${range} of ${number(map.bytes.length)}`, glyph, ""]];
    const codes = Array.from(map.bytes.subarray(start, stop), byte => byte.toString(16).padStart(2, "0"));
    for (const name of Object.keys(NAMES)) {
      if (!map.rows[name]) continue;
      const value = map.value(name, selects.layer.value, selects.head.value, index);
      const digits = name === "bits" || map.map.quantities[name].width === 2 ? 3 : 2;
      cells.push([NAMES[name], show(value, digits), name]);
    }
    element("readout").replaceChildren(...cells.map(([label, text, name], column) => {
      const cell = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = label;
      if (column === 0) {
        const sign = document.createElement("span"), code = document.createElement("small");
        sign.className = "glyph";
        sign.textContent = {"\n": "↵", " ": "␣", "\t": "⇥"}[text] ?? text;
        code.textContent = (codes.length > 6 ? [...codes.slice(0, 5), "…"] : codes).join(" ");
        value.append(sign, code);
      } else {
        value.textContent = text;
      }
      if (name === selects.quantity.value) cell.className = "shown";
      cell.append(term, value);
      return cell;
    }));
  }

  function point(index) {
    if (index === map.current) return;
    map.point(index);
    readOut();
  }

  function follow(event) {
    if (event.target.index !== undefined && box.contains(event.target)) point(event.target.index);
  }

  function keys(event) {
    const line = {ArrowUp: -1, ArrowDown: 1}[event.key], step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if ((!line && !step) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const last = map.glyphs.length - 1, within = index => Math.min(last, Math.max(0, index));
    let index = within(map.current + (step || 0));
    if (line) {
      // The nearest character of the next line: walk until the line has changed and the column is reached.
      const from = map.node(map.current), column = from.offsetLeft, row = from.offsetTop;
      let at = map.current;
      while (at + line >= 0 && at + line <= last) {
        const node = map.node(at + line), gone = Math.abs(node.offsetTop - row);
        if (gone > from.offsetHeight * 1.8) break;
        at += line;
        if (gone > from.offsetHeight / 2 && (line > 0 ? node.offsetLeft >= column : node.offsetLeft <= column)) break;
      }
      index = at;
    }
    point(index);
    map.node(index).scrollIntoView({block: "nearest"});
  }

  function jump(event) {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const frame = strip.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
    map.scrollTo(Math.min(map.glyphs.length - 1, Math.floor(part * map.glyphs.length)));
    if (event.type === "pointerdown") strip.setPointerCapture(event.pointerId);
  }

  element("legend-ramp").append(...Array.from({length: page.levels}, (_, level) => {
    const step = document.createElement("i");
    step.className = `s${level}`;
    return step;
  }));
  fillSelect(selects.text, page.maps.map((map, i) => [i, map.title]), "0");
  selects.text.parentElement.hidden = page.maps.length < 2;
  selects.text.addEventListener("change", chooseText);
  for (const name of ["quantity", "layer", "head", "scale"]) selects[name].addEventListener("change", shade);
  box.addEventListener("pointerover", follow);
  box.addEventListener("click", follow);
  box.addEventListener("keydown", keys);
  box.addEventListener("scroll", () => requestAnimationFrame(moveWindow), {passive: true});
  strip.addEventListener("pointerdown", jump);
  strip.addEventListener("pointermove", jump);
  new ResizeObserver(moveWindow).observe(box);
  addEventListener("beforeprint", () => map.blocks.forEach(block => map.paint(block)));
  chooseText();
  moveWindow();
}

if (page.plot) startPlot(element("plot"), page.plot);
if (page.maps.length) startMap();
