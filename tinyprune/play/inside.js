"use strict";
// One head opened: what it computes for the character that reads, step by step, and an example that
// fits on paper.

// Three characters, Dh = 4: scores are divided by 2, and become ln 1, ln 2 and ln 4.
const HAND = {
  q: [1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1].map((x) => 2 * Math.LN2 * x),
  k: [0, 1, 2, -1, 1, 0, 1, 0, 1, 1, 0, 0],
  v: [0, 3, 0, 1, 0, 0, 3, 1, 7, -6, 2, 1],
};
const MOST_ROWS = 5; // characters of a table, before the others together

// What head h of layer i computes at character t of a text that was read, its gate open or not:
// rows of what `attend` returns, of which key 0 is character `first`; `added` (D), what the head
// adds to the stream, and `network` (D), what its hidden units add, if it has any; the stream
// `before` and `after` the attention of its layer.
function inside(i, h, t, { streams }) {
  const { T, D, Dh, M, attended, networks } = model.config, at = t % T, last = (t - at) / T;
  let found = null, made = null;
  for (let segment = 0; segment <= last; segment++) {
    const x = streams[segment][i][0], memory = found && remembered(model, found, M);
    made = new Float64Array(x.length);
    found = head(model, i, h, normed(model, i, "ln", x), x.length / D, made, memory);
  }
  const row = (x, size) => x && x.subarray(at * size, (at + 1) * size), { S } = found;
  const [before, after] = streams[last][i].map((x) => row(x, D)), added = row(made, D);
  const network = networks ? new Float64Array(D) : null;
  if (network) addNetwork(model, i, h, normed(model, i, "net.ln", after), 1, network);
  return {
    first: last * T + made.length / D - S, S, before, after, added, network,
    content: row(found.content, S), position: row(found.position, S),
    s: row(found.s, S + attended), a: row(found.a, S + attended), o: row(found.o, Dh),
  };
}

const norm = (x) => Math.hypot(...x);
const decimals = (x, count = 2) => x.toFixed(count).replace("-", "−");
const highest = (x) => Math.max(...x.map(Math.abs)) || 1;
const sum = (x) => x.reduce((a, b) => a + b, 0);

// A picture of numbers as thin bars, upwards where they are positive, `most` is the highest.
function numbers(x, most, kind, label) {
  const svg = $("numbers").content.firstElementChild.cloneNode(true);
  svg.setAttribute("viewBox", `0 0 ${x.length} 2`);
  svg.setAttribute("class", `numbers ${kind}`);
  svg.setAttribute("aria-label", label);
  const bars = Array.from(x, (value, at) => `M${at + 0.5} 1V${1 - value / most}`);
  svg.firstElementChild.setAttribute("d", bars.join(""));
  return svg;
}

const tableRow = (cells, name = "td") => {
  const row = element("tr");
  row.append(...cells.map((cell) => (cell instanceof Node ? cell : element(name, cell))));
  return row;
};

function weightCell(weight) {
  const cell = element("td", weight.toFixed(3), { class: "weight" });
  cell.style.setProperty("--share", `${100 * weight}%`);
  return cell;
}

// The characters with the largest weights, all others together, persistent vectors, and the sum.
function drawWeights({ first, S, content, position, s, a }, t) {
  const { Dh, attended } = model.config, root = +Math.sqrt(Dh).toFixed(2);
  const seen = [...s.keys()].filter((j) => j < S && s[j] > -Infinity).sort((x, y) => a[y] - a[x]);
  const rows = seen.slice(0, MOST_ROWS).map((j) => {
    const name = element("th"), back = t - first - j, scores = [content[j]];
    if (position) scores.push(position[j]);
    const letter = element("code", shown(characters[ids[first + j]]));
    name.append(letter, back ? ` ${back} before` : " itself");
    return tableRow([name, ...[...scores, s[j]].map((x) => decimals(x)), weightCell(a[j])]);
  });
  const together = (said, some) => {
    const name = element("th", said, { colspan: position ? 4 : 3 });
    rows.push(tableRow([name, weightCell(sum(some))]));
  };
  const others = seen.slice(MOST_ROWS);
  if (others.length) together(`the ${others.length} others together`, others.map((j) => a[j]));
  if (attended) together(`its ${attended} persistent vectors together`, a.subarray(S));
  together("all together", a);
  const scores = position ? ["(q + u) · k", "(q + w) · r", `sum ÷ ${root}`]
    : ["q · k", `÷ ${root}`];
  $("weights").replaceChildren(tableRow(["reads", ...scores, "weight a"], "th"), ...rows);
}

// What the head adds to the stream, gate open or not, in bars on one scale.
function drawAdded([i, h], { before, after, added, network }) {
  const isOpen = state.open[i][h], all = [...before, ...after, ...added, ...(network ?? [])];
  const size = (x) => decimals(norm(x)), share = percent(norm(added) / norm(before));
  const other = after.map((x, d) => x + (isOpen ? -added[d] : added[d]));
  const parts = [
    [`The stream before the heads of layer ${i}: ‖x‖ = ${size(before)}`, before, "all"],
    [`${isOpen ? "1 · o Wo is added" : "0 · o Wo is nothing: the stream loses Δ = o Wo"}, `
      + `‖Δ‖ = ${size(added)}, ${share} of ‖x‖`, added, isOpen ? "now" : "lost"],
    [`The stream after all heads of the layer: ‖y‖ = ${size(after)}`
      + `; with this gate at ${isOpen ? 0 : 1} it is ${size(other)}`, after, "all"],
  ];
  if (network) {
    parts.push([`The gate also multiplies its network of ${model.config.N} hidden units, which `
      + `${isOpen ? "then adds" : "would then add"} a vector of length ${size(network)}`,
    network, isOpen ? "now" : "lost"]);
  }
  $("added").replaceChildren(...parts.flatMap(([said, x, kind]) => [
    element("p", said), numbers(x, highest(all), kind, said)]));
  $("gate").setAttribute("aria-checked", String(isOpen));
  $("gate").textContent = `Gate g = ${isOpen ? 1 : 0}`;
}

function drawInside() {
  const place = state.hovered ?? state.chosen, t = state.query ?? ids.length - 1;
  const found = inside(...place, t, now), { Dh } = model.config;
  const reader = quoted(characters[ids[t]]);
  $("t8").textContent = `Inside ${nameOf(place)}, when ${reader} reads`;
  $("compared").textContent = `q of ${reader} times k of each character that it can read`
    + `${found.position ? ", by content and by distance," : ","} divided by √${Dh}.`;
  drawWeights(found, t);
  const said = `The head’s output o: ${Array.from(found.o, (x) => decimals(x)).join(", ")}`;
  $("mixed").textContent = "The v of each character times its weight, added up: "
    + `${Dh} numbers, ‖o‖ = ${decimals(norm(found.o))}.`;
  $("output").replaceChildren(numbers(found.o, highest(found.o), "now", said));
  drawAdded(place, found);
}

function drawHand() {
  const { s, a, o } = attend(HAND, 4), names = ["a", "b", "c"];
  const fraction = (x) => {
    const below = [1, 2, 3, 4, 5, 6, 7].find((n) => Math.abs(n * x - Math.round(n * x)) < 1e-9);
    return `${decimals(below * x, 0)}${below > 1 ? `/${below}` : ""}`;
  };
  const rows = names.map((name, t) => {
    const of = (x, said) => Array.from(x.subarray(3 * t, 3 * t + t + 1), said).join(", ");
    const scores = of(s, (x) => `ln ${Math.round(Math.exp(x))}`);
    const output = Array.from(o.subarray(4 * t, 4 * t + 4), fraction).join(", ");
    return tableRow([element("th", name), scores, of(a, fraction), `(${output})`]);
  });
  const titles = ["reads", "scores q · k ÷ 2", "weights a", "output o"];
  $("hand").append(tableRow(titles, "th"), ...rows);
}
