"use strict";
// A playground for gates, as chapter 05 derives them: every step draws a hard gate, and Adam moves
// its log_alpha by the worth of the head (a parabola, worth · (1 − g)²) and by the price lam of L0.
// Nothing of the model is used.
const WORTHS = [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.25];
const RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05];
const MOST_STEPS = 2000, WARMUP = 100, BETA = 0.333, GAMMA = -0.1, ZETA = 1.1;
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const probability = (logAlpha) => sigmoid(logAlpha - BETA * Math.log(-GAMMA / ZETA));

// log_alpha of one gate before each step, and after the last.
function pathOf(worth, lam, rate, seed) {
  const random = generator(seed), path = [2];
  let m = 0, v = 0;
  for (let step = 1; step <= MOST_STEPS; step++) {
    const logAlpha = path[step - 1], u = Math.min(Math.max(random(), 1e-6), 1 - 1e-6);
    const s = sigmoid((Math.log(u) - Math.log1p(-u) + logAlpha) / BETA);
    const stretched = s * (ZETA - GAMMA) + GAMMA, isOpen = stretched >= 0.5;
    const moves = stretched > 0 && stretched < 1;
    const slope = moves ? (ZETA - GAMMA) * s * (1 - s) / BETA : 0;
    const p = probability(logAlpha), price = lam * Math.min(1, step / WARMUP);
    const gradient = price * p * (1 - p) - (isOpen ? 0 : 2 * worth * slope);
    m = 0.9 * m + 0.1 * gradient;
    v = 0.999 * v + 0.001 * gradient * gradient;
    const mean = m / (1 - 0.9 ** step), root = Math.sqrt(v / (1 - 0.999 ** step));
    path.push(logAlpha - rate * mean / (root + 1e-8));
  }
  return path;
}

function drawGates() {
  const lam = Number($("lam").value), steps = Number($("steps").value);
  const rate = RATES[$("rate").value], key = `${lam} ${rate}`;
  $("price").textContent = `${lam.toFixed(2)} nats`;
  $("stop").textContent = number(steps);
  $("speed").textContent = rate;
  $("rate").setAttribute("aria-valuetext", rate);
  if (drawGates.key !== key) {
    drawGates.paths = WORTHS.map((worth, seed) => pathOf(worth, lam, rate, seed));
  }
  drawGates.key = key;
  const isOpen = (step) => drawGates.paths.map((path) => path[step] >= 0), now = isOpen(steps);
  const count = (list) => list.filter(Boolean).length;
  const kept = WORTHS.filter((_, i) => now[i]), later = count(isOpen(MOST_STEPS));
  const some = kept.length && kept.length < WORTHS.length;
  const open = `${count(now)} of ${WORTHS.length} gates are open`;
  $("result").textContent = `Stopped after ${number(steps)} steps, ${open}`
    + (some ? `; the least of their heads is worth ${kept[0]} nats` : "")
    + (steps < MOST_STEPS ? `. After ${number(MOST_STEPS)} steps it would be ${later}.` : ".");

  const svg = $("curves"), width = svg.clientWidth || 600, height = 300;
  const left = 46, right = 62, top = 12, bottom = 44;
  const x = (step) => left + (width - left - right) * step / MOST_STEPS;
  const y = (p) => top + (height - top - bottom) * (1 - p);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `P(open) of ${WORTHS.length} gates over ${MOST_STEPS} steps. `
    + $("result").textContent);
  svg.replaceChildren();
  const add = (name, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    svg.append(made);
  };
  for (const p of [0, 0.5, 1]) {
    add("line", { x1: left, x2: width - right, y1: y(p), y2: y(p), class: "rule" });
    add("text", { x: left - 8, y: y(p) + 4, "text-anchor": "end" }, p);
  }
  for (const step of [0, 500, 1000, 1500, 2000]) {
    const place = { x: x(step), y: height - bottom + 20, "text-anchor": "middle" };
    add("text", place, number(step));
  }
  add("text", { x: x(MOST_STEPS / 2), y: height - 6, "text-anchor": "middle" }, "step");
  const shut = probability(0);
  add("line", { x1: left, x2: width - right, y1: y(shut), y2: y(shut), class: "shut" });
  drawGates.paths.forEach((path, i) => {
    const point = (a, j) => `${x(10 * j).toFixed(1)},${y(probability(a)).toFixed(1)}`;
    const points = path.filter((_, step) => step % 10 === 0).map(point);
    add("polyline", { points: points.join(" "), class: now[i] ? "curve stays" : "curve goes" });
  });
  add("line", { x1: x(steps), x2: x(steps), y1: top, y2: height - bottom, class: "stop" });
  const below = { x: width - right - 4, y: y(shut) + 16, "text-anchor": "end", class: "halo" };
  add("text", below, "below: shut at the end");
  const end = (path, i) => [y(probability(path[MOST_STEPS])), WORTHS[i], now[i]];
  const labels = drawGates.paths.map(end).sort((a, b) => a[0] - b[0]);
  for (let i = 1; i < labels.length; i++) {
    labels[i][0] = Math.max(labels[i][0], labels[i - 1][0] + 14);
  }
  const over = Math.max(0, labels.at(-1)[0] - (height - bottom));
  for (let i = labels.length - 1, most = height - bottom; over && i >= 0; i--, most -= 14) {
    labels[i][0] = Math.min(labels[i][0], most);
  }
  for (const [at, worth, stays] of labels) {
    add("text", { x: width - right + 6, y: at + 4, class: stays ? "stays" : "goes" }, worth);
  }
  add("text", { x: width - right + 6, y: height - 6 }, "worth");
}

for (const name of ["lam", "steps", "rate"]) $(name).oninput = drawGates;
addEventListener("resize", drawGates);
drawGates();
