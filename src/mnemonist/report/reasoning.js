
// A page about reasoning has three parts that are drawn here: trees (an outline whose branches fold, and a map of it),
// journeys beside their shortcuts, and rollouts behind filters. What models wrote becomes text nodes, nothing else.

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

const known = value => value !== null && value !== undefined;
const percent = part => `${(100 * part).toFixed(1)} %`;
const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

// ------------------------------------------------------------------------------------------------- trees

const COLOURS = {value: "value", truth: "truth", visits: "visits", log_prob: "log-probability"};
const COLOUR_MEANINGS = {
  value: "Each step is shaded by what the search thought of the path up to it.",
  truth: "Each step is coloured by the truth: whether a right answer can still be reached after it.",
  visits: "Each step is shaded by how often the search passed through it (log scale).",
  log_prob: "Each step is shaded by how likely the policy found it.",
};
const TRUTHS = {right: "right", hopeful: "hopeful", hopeless: "hopeless", wrong: "wrong", unknown: "not known"};
const OPEN_AT_FIRST = 120;

class Tree {
  constructor(tree) {
    this.tree = tree;
    this.count = tree.parent.length;
    this.children = Array.from({length: this.count}, () => []);
    tree.parent.forEach((parent, i) => { if (known(parent)) this.children[parent].push(i); });
    this.path = new Set();
    for (let i = tree.chosen; known(i); i = tree.parent[i]) this.path.add(i);
    this.depth = [];
    tree.parent.forEach((parent, i) => { this.depth[i] = known(parent) ? this.depth[parent] + 1 : 0; });
    this.most = Math.max(1, ...tree.visits);
    const likely = tree.log_prob.filter(known);
    this.least = likely.length ? Math.min(...likely) : 0;
  }

  has(quantity) {
    if (quantity === "truth") return this.tree.hopeful.some(known) || this.tree.node_right.some(known);
    return quantity === "visits" ? this.most > 1 : this.tree[quantity].some(known);
  }

  truth(i) {
    const {node_right, finished, hopeful} = this.tree;
    if (finished[i] && known(node_right[i])) return node_right[i] ? "right" : "wrong";
    return known(hopeful[i]) ? (hopeful[i] ? "hopeful" : "hopeless") : "unknown";
  }

  // From 0 to 1, or null if it is not known.
  shade(i, quantity) {
    const value = this.tree[quantity][i];
    if (!known(value)) return null;
    if (quantity === "visits") return Math.log1p(value) / Math.log1p(this.most);
    if (quantity === "log_prob") return this.least < 0 ? 1 - value / this.least : 1;
    return Math.min(1, Math.max(0, value));
  }

  classOf(i, quantity) {
    if (quantity === "truth") return `t-${this.truth(i)}`;
    const shade = this.shade(i, quantity);
    return shade === null ? "none" : `s${Math.round(shade * (page.levels - 1))}`;
  }

  chipText(i, quantity) {
    if (quantity === "truth") return TRUTHS[this.truth(i)];
    const value = this.tree[quantity][i];
    if (!known(value)) return "–";
    return quantity === "visits" ? value.toLocaleString("en") : value.toFixed(2);
  }
}

function startTrees() {
  const made = [], box = element("tree"), bars = element("tree-bars"), legend = element("tree-legend");
  const selects = {tree: element("choose-tree"), colour: element("choose-colour"), branches: element("choose-branches")};
  let tree = null, current = 0, items = [];

  const shown = i => selects.branches.value === "all" || !tree.tree.discarded[i] || tree.path.has(i);
  const below = i => tree.children[i].filter(shown);

  function chooseTree() {
    const number = Number(selects.tree.value);
    tree = made[number] ??= new Tree(page.trees[number]);
    const colours = Object.keys(COLOURS).filter(name => tree.has(name));
    fillSelect(selects.colour, (colours.length ? colours : ["truth"]).map(name => [name, COLOURS[name]]), selects.colour.value);
    selects.branches.parentElement.hidden = !tree.tree.discarded.some((gone, i) => gone && !tree.path.has(i));
    element("tree-question").textContent = tree.tree.question;
    current = tree.tree.chosen ?? 0;
    draw();
  }

  function draw() {
    items = [];
    const list = make("ul");
    list.setAttribute("role", "tree");
    list.setAttribute("aria-label", "steps");
    list.append(item(0));
    box.replaceChildren(list);
    const all = tree.count <= OPEN_AT_FIRST;
    for (let i = 0; i < tree.count; i++) if (items[i] && (all || tree.path.has(i) || i === 0)) setOpen(i, true);
    if (!shown(current)) current = 0;
    drawMap();
    drawLegend();
    element("tree-caption").textContent = COLOUR_MEANINGS[selects.colour.value]
      + (known(tree.tree.chosen) ? " The path of the answer is in bold." : "")
      + (tree.tree.discarded.some(Boolean) ? " What the search gave up is grey." : "");
    point(current, false);
    box.scrollTop = Math.max(0, items[current].offsetTop - box.clientHeight / 2);
  }

  // The element of a node; what is below it is made when it is first opened.
  function item(i) {
    const {text, reason, node_right, finished} = tree.tree;
    const node = make("li", (tree.path.has(i) && i ? "chosen " : "") + (tree.tree.discarded[i] ? "gone" : ""));
    node.setAttribute("role", "treeitem");
    node.setAttribute("aria-level", tree.depth[i] + 1);
    node.tabIndex = -1;
    node.number = i;
    const row = make("div", "row"), leaf = !below(i).length;
    row.append(make("span", "fold", leaf ? "" : "▸"));
    if (i) row.append(make("span", `chip ${tree.classOf(i, selects.colour.value)}`, tree.chipText(i, selects.colour.value)));
    row.append(make("span", "said", i ? text[i].trimEnd() || "(nothing)" : `the problem · ${many(tree.count - 1, "step")}`));
    const told = selects.colour.value === "truth" && i;
    if (!told && finished[i] && known(node_right[i])) row.append(make("span", `mark ${node_right[i] ? "right" : "wrong"}`, node_right[i] ? "✓ right" : "✗ wrong"));
    if (reason[i]) row.append(make("span", "why", reason[i]));
    node.append(row);
    if (!leaf) node.setAttribute("aria-expanded", "false");
    items[i] = node;
    return node;
  }

  const isOpen = i => items[i].getAttribute("aria-expanded") === "true";

  function setOpen(i, open) {
    const node = items[i];
    if (!node.hasAttribute("aria-expanded")) return;
    node.setAttribute("aria-expanded", String(open));
    node.firstChild.firstChild.textContent = open ? "▾" : "▸";
    if (open && !node.children[1]) {
      const list = make("ul");
      list.setAttribute("role", "group");
      list.append(...below(i).map(item));
      node.append(list);
    }
    if (node.children[1]) node.children[1].hidden = !open;
  }

  function setAll(open) {
    for (let i = 0; i < tree.count; i++) if (items[i]) setOpen(i, open || i === 0);
    if (!visible(current)) point(0, false);
  }

  function visible(i) {
    for (let up = tree.tree.parent[i]; known(up); up = tree.tree.parent[up]) if (!items[up] || !isOpen(up)) return false;
    return Boolean(items[i]);
  }

  function reveal(i) {
    const up = tree.tree.parent[i];
    if (known(up)) { reveal(up); setOpen(up, true); }
  }

  function point(i, focus = true) {
    reveal(i);
    items[current]?.classList.remove("at");
    if (items[current]) { items[current].tabIndex = -1; items[current].removeAttribute("aria-selected"); }
    current = i;
    items[i].classList.add("at");
    items[i].tabIndex = 0;
    items[i].setAttribute("aria-selected", "true");
    if (focus) items[i].focus();
    bars.querySelector(".at")?.classList.remove("at");
    bars.querySelector(`[data-node="${i}"]`)?.classList.add("at");
    readOut(i);
  }

  function readOut(i) {
    const t = tree.tree;
    const cells = [
      ["step", i ? `${i.toLocaleString("en")}, at depth ${tree.depth[i]}` : "the problem"],
      tree.has("value") && ["value", known(t.value[i]) ? t.value[i].toFixed(3) : "–"],
      tree.has("truth") && ["truth", TRUTHS[tree.truth(i)]],
      t.visits.some(Boolean) && ["visits", t.visits[i].toLocaleString("en")],
      t.tokens.some(Boolean) && ["tokens", t.tokens[i].toLocaleString("en")],
      tree.has("log_prob") && ["log-prob", show(t.log_prob[i])],
      ["given up", t.discarded[i] ? "yes" : "no"],
    ];
    const nodes = cells.filter(Boolean).map(([label, text]) => cell(label, text, ""));
    if (t.reason[i]) nodes.push(cell("reason", t.reason[i], "whole"));
    if (known(t.node_answer[i])) nodes.push(cell("answer", t.node_answer[i], "whole"));
    element("node").replaceChildren(...nodes);
  }

  function cell(label, text, className) {
    const node = make("div", className);
    node.append(make("dt", "", label), make("dd", "", text));
    return node;
  }

  // Rows of boxes: a node is as wide as the leaves below it.
  function drawMap() {
    const start = [], width = [];
    let at = 0;
    (function place(i) {
      start[i] = at;
      const children = below(i);
      if (children.length) children.forEach(place); else at++;
      width[i] = at - start[i];
    })(0);
    const placed = width.map((_, i) => i).filter(i => i > 0);
    const rows = Math.max(1, ...placed.map(i => tree.depth[i]));
    element("tree-map").style.height = `${Math.min(190, 8 + 15 * rows)}px`;
    bars.setAttribute("viewBox", `0 -0.15 ${at} ${rows + 0.3}`);
    bars.replaceChildren(...placed.map(i => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const gone = tree.tree.discarded[i] && !tree.path.has(i) ? " gone" : "";
      rect.setAttribute("class", tree.classOf(i, selects.colour.value) + gone);
      for (const [key, value] of Object.entries({x: start[i], y: tree.depth[i] - 1, width: width[i], height: 1})) rect.setAttribute(key, value);
      rect.dataset.node = i;
      return rect;
    }));
  }

  function drawLegend() {
    const truth = selects.colour.value === "truth";
    legend.className = truth ? "legend words-of-truth" : "legend";
    if (truth) {
      const met = new Set(tree.tree.parent.map((_, i) => tree.truth(i)).slice(1));
      legend.replaceChildren(...Object.keys(TRUTHS).filter(name => met.has(name)).map(name => make("span", `t-${name}`, TRUTHS[name])));
      return;
    }
    const ramp = make("div", "ramp"), ends = make("div", "ends");
    ramp.append(...Array.from({length: page.levels}, (_, level) => make("i", `s${level}`)));
    const [low, high] = {value: ["0", "1"], visits: ["0", tree.most.toLocaleString("en")], log_prob: [show(tree.least), "0"]}[selects.colour.value];
    ends.append(make("span", "", low), make("span", "", high));
    legend.replaceChildren(ramp, ends);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const open = items[current].hasAttribute("aria-expanded") && isOpen(current);
    const inSight = [...box.querySelectorAll("li")].map(node => node.number).filter(visible);
    const at = inSight.indexOf(current);
    const next = {
      ArrowDown: () => inSight[at + 1],
      ArrowUp: () => inSight[at - 1],
      Home: () => inSight[0],
      End: () => inSight[inSight.length - 1],
      ArrowRight: () => { if (open) return below(current)[0]; setOpen(current, true); },
      ArrowLeft: () => { if (!open) return tree.tree.parent[current]; setOpen(current, false); },
      Enter: () => { setOpen(current, !open); },
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const i = next();
    if (known(i)) point(i);
  }

  function hover(event) {
    const node = event.target.closest?.("li");
    if (node && box.contains(node)) readOut(node.number);
  }

  box.addEventListener("click", event => {
    const node = event.target.closest("li");
    if (!node) return;
    const fold = event.target.classList.contains("fold") || node.number === current;
    point(node.number);
    if (fold && node.hasAttribute("aria-expanded")) setOpen(node.number, !isOpen(node.number));
  });
  box.addEventListener("pointerover", hover);
  box.addEventListener("pointerleave", () => readOut(current));
  box.addEventListener("keydown", keys);
  bars.addEventListener("click", event => {
    if (!event.target.dataset.node) return;
    point(Number(event.target.dataset.node));
  });
  fillSelect(selects.tree, page.trees.map((each, i) => [i, each.title + (known(each.right) ? (each.right ? " · right" : " · wrong") : "")]), "0");
  selects.tree.addEventListener("change", chooseTree);
  selects.colour.addEventListener("change", draw);
  selects.branches.addEventListener("change", draw);
  element("open-all").addEventListener("click", () => setAll(true));
  element("close-all").addEventListener("click", () => setAll(false));
  chooseTree();
}

// ---------------------------------------------------------------------------------------------- journeys

function startJourneys() {
  const box = element("journey"), select = element("choose-journey");
  const before = element("journey-before"), next = element("journey-next");

  function draw() {
    const number = Number(select.value), journey = page.journeys[number];
    const size = lines => lines.reduce((sum, line) => sum + line.length + 1, 0);
    const long = size(journey.lines.map(([text]) => text)), short = size(journey.shortcut);
    const ends = journey.lines.filter(([, kind]) => kind === "dead end").length;
    element("journey-question").textContent = journey.question;
    box.replaceChildren(
      head("journey", "Journey", `${many(journey.lines.length, "line")}, ${many(ends, "dead end")}, ${many(long, "character")}`),
      head("shortcut", "Shortcut", `${many(journey.shortcut.length, "line")}, ${many(short, "character")}`),
    );
    const straight = [...journey.shortcut];
    let first = " first";
    for (const [text, kind, depth, again] of journey.lines) {
      const astray = depth ? ` astray in-${Math.min(depth, 5)}` : "";
      const twin = !astray && kind === "step" && straight.length ? straight.shift() : "";
      box.append(
        make("div", `${kind.replace(" ", "-")}${astray}${again ? " again" : ""}${first}`, text),
        make("div", `shortcut${first}`, twin),
      );
      first = "";
    }
    for (const rest of straight) box.append(make("div"), make("div", "shortcut", rest));
    box.append(make("div", "final", journey.answer), make("div", "shortcut final", journey.answer));
    box.scrollTop = 0;
    before.disabled = number === 0;
    next.disabled = number === page.journeys.length - 1;
  }

  function head(side, name, facts) {
    const node = make("div", `head ${side}`);
    node.append(make("b", "", name), ` · ${facts}`);
    return node;
  }

  function step(by) {
    select.value = Number(select.value) + by;
    draw();
  }

  fillSelect(select, page.journeys.map((journey, i) => [i, journey.title]), "0");
  select.addEventListener("change", draw);
  before.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  draw();
}

// ---------------------------------------------------------------------------------------------- rollouts

const ROLLOUTS_AT_ONCE = 40;

// The word as it stands, in whatever case, not as a part of a longer one.
function wordPattern(word) {
  return `(?<![\\p{L}\\p{N}_])${word.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&")}(?![\\p{L}\\p{N}_])`;
}

function startRollouts() {
  const list = element("rollout-list"), more = element("more"), containing = element("containing");
  const selects = {group: element("choose-group"), right: element("choose-right"), order: element("choose-order")};
  const groups = [...new Set(page.rollouts.map(rollout => rollout.group))];
  const pressed = new Set();
  let found = [], drawn = 0;

  function filter() {
    const part = containing.value.toLowerCase();
    const patterns = [...pressed].map(word => new RegExp(wordPattern(word), "iu"));
    found = page.rollouts.filter(rollout =>
      (selects.group.value === "all" || rollout.group === groups[Number(selects.group.value)])
      && (selects.right.value === "all" || String(rollout.right) === selects.right.value)
      && (!part || rollout.text.toLowerCase().includes(part))
      && patterns.every(pattern => pattern.test(rollout.text)));
    const longer = (a, b) => b.tokens - a.tokens || b.text.length - a.text.length;
    if (selects.order.value === "longest") found.sort(longer);
    if (selects.order.value === "shortest") found.sort((a, b) => longer(b, a));
    count();
    list.replaceChildren();
    drawn = 0;
    drawMore();
  }

  function count() {
    const judged = found.filter(rollout => known(rollout.right));
    const parts = [`${found.length.toLocaleString("en")} of ${many(page.rollouts.length, "rollout")}`];
    if (judged.length) parts.push(`${percent(judged.filter(rollout => rollout.right).length / judged.length)} right`);
    const tokens = found.reduce((sum, each) => sum + each.tokens, 0);
    if (tokens) parts.push(`${Math.round(tokens / found.length).toLocaleString("en")} tokens on average`);
    element("rollout-count").textContent = parts.join(" · ");
  }

  function drawMore() {
    const part = containing.value, sources = [...pressed].map(wordPattern);
    if (part) sources.push(part.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&"));
    const pattern = sources.length ? new RegExp(sources.join("|"), "giu") : null;
    const stop = Math.min(found.length, drawn + ROLLOUTS_AT_ONCE);
    for (; drawn < stop; drawn++) list.append(entry(found[drawn], pattern, drawn === 0));
    more.hidden = drawn >= found.length;
    more.textContent = `Show ${Math.min(ROLLOUTS_AT_ONCE, found.length - drawn)} more`;
  }

  function entry(rollout, pattern, open) {
    const node = make("details"), summary = make("summary");
    const kind = known(rollout.right) ? (rollout.right ? "right" : "wrong") : "";
    const line = make("span", "first-line");
    if (rollout.problem) line.append(make("b", "", rollout.problem));
    line.append(rollout.text.trim().split("\n", 1)[0].slice(0, 200));
    const sizes = [rollout.group, rollout.tokens ? many(rollout.tokens, "token") : "", known(rollout.reward) ? `reward ${show(rollout.reward)}` : ""];
    summary.append(
      make("span", `mark ${kind}`, {right: "✓ right", wrong: "✗ wrong", "": "not judged"}[kind]), line,
      make("span", "size", sizes.filter(Boolean).join(" · ")),
    );
    node.append(summary);
    // What is inside is made when it is first opened.
    const fill = () => { if (node.open && node.children.length === 1) node.append(body(rollout, pattern)); };
    node.addEventListener("toggle", fill);
    node.open = open;
    fill();
    return node;
  }

  function body(rollout, pattern) {
    const node = make("div", "body"), text = make("pre");
    if (rollout.question) node.append(make("pre", "asked", rollout.question));
    highlight(text, rollout.text, pattern);
    node.append(text);
    const given = make("p", "given");
    given.append("answer ", make("b", "", known(rollout.answer) ? rollout.answer : "none"));
    if (rollout.expected) given.append(" · a right one is ", make("b", "", rollout.expected));
    node.append(given);
    return node;
  }

  function highlight(node, text, pattern) {
    let from = 0;
    for (const match of pattern ? text.matchAll(pattern) : []) {
      if (!match[0]) continue;
      node.append(text.slice(from, match.index), make("mark", "", match[0]));
      from = match.index + match[0].length;
    }
    node.append(text.slice(from));
  }

  element("words").append(...page.words.map(word => {
    const button = make("button", "", `“${word}”`);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      if (!pressed.delete(word)) pressed.add(word);
      button.setAttribute("aria-pressed", String(pressed.has(word)));
      filter();
    });
    return button;
  }));
  fillSelect(selects.group, [["all", "all"], ...groups.map((group, i) => [i, group || "none"])], "all");
  selects.group.parentElement.hidden = groups.length < 2;
  for (const select of Object.values(selects)) select.addEventListener("change", filter);
  containing.addEventListener("input", filter);
  more.addEventListener("click", drawMore);
  filter();
}

document.querySelectorAll("figure.lines").forEach((figure, i) => startPlot(figure, page.plots[i]));
if (page.trees.length) startTrees();
if (page.journeys.length) startJourneys();
if (page.rollouts.length) startRollouts();
