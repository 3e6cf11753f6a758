
"use strict";

// What the pages share: numbers for people, plots that the pointer can read, and the command that can be copied.
// Everything a page shows comes from its data and is written as text nodes only.

const page = JSON.parse(document.getElementById("page-data").textContent);
const element = id => document.getElementById(id);

function show(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) {
    return size >= 10 ** digits ? Math.round(value).toLocaleString("en") : value.toPrecision(digits);
  }
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const raised = [...String(Number(exponent))].map(c => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  return `${mantissa}·10${raised}`;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => String(value) === chosen)) select.value = chosen;
}

// ------------------------------------------------------------------------------------------------- plots

// The pointer and the arrow keys read a drawing: `frame` holds its SVG and a tip, `geometry` says what lies where.
function startPlot(frame, {left, right, top, bottom, unit, curves}) {
  const svg = frame.querySelector(".plot"), marks = frame.querySelector(".marks"), tip = frame.querySelector(".tip");
  const columns = [...new Set(curves.flatMap(curve => curve.points.map(([x]) => x)))].sort((a, b) => a - b);
  let column = -1;

  const digits = value => (Math.abs(value) < 1000 ? value.toFixed(3) : show(value, 4));
  const count = value => (Math.abs(value) < 1e7 && (Math.abs(value) >= 10 || value % 1 === 0)
    ? Math.round(value).toLocaleString("en") : show(value, 4));

  function mark(kind, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  }

  function showColumn(next) {
    column = next;
    const x = columns[column];
    marks.replaceChildren(mark("path", {class: "cross", d: `M${x} ${top}V${bottom}`}));
    tip.replaceChildren();
    for (const {label, style, points} of curves) {
      const point = points.find(([px]) => px === x);
      if (!point) continue;
      const [, y, place, value, low, high] = point;
      marks.append(mark("circle", {class: `dot ${style}`, cx: x, cy: y, r: 4.5}));
      if (!tip.firstChild) {
        tip.append(document.createElement("b"));
        tip.firstChild.textContent = `${unit} ${count(place)}`;
      }
      const line = document.createElement("div");
      line.className = style;
      line.textContent = `${label}  ${digits(value)}` + (low === null || high === null ? "" : `  (${digits(low)}–${digits(high)})`);
      tip.append(line);
    }
    tip.hidden = false;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const before = x > (left + right) / 2;
    tip.style.left = before ? "" : `${x * scale + 14}px`;
    tip.style.right = before ? `${(svg.viewBox.baseVal.width - x) * scale + 14}px` : "";
  }

  function hide() {
    tip.hidden = true;
    marks.replaceChildren();
  }

  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect();
    const x = (event.clientX - frame.left) * svg.viewBox.baseVal.width / frame.width;
    if (x < left - 8 || x > right + 8) return hide();
    let nearest = 0;
    columns.forEach((c, i) => { if (Math.abs(c - x) < Math.abs(columns[nearest] - x)) nearest = i; });
    showColumn(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step) return;
    event.preventDefault();
    showColumn(Math.min(columns.length - 1, Math.max(0, column + step)));
  });
}

// ----------------------------------------------------------------------------------------------- command

function startCopy() {
  const button = element("copy"), command = element("command");
  button.addEventListener("click", async () => {
    let copied = false;
    try {
      await navigator.clipboard.writeText(command.textContent);
      copied = true;
    } catch {
      // Some browsers keep the clipboard from pages on disk: select the command, and try the older way.
      getSelection().selectAllChildren(command);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

document.documentElement.classList.add("scripted");
startCopy();
