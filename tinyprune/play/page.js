"use strict";
// What is seen: the sentence, the heads, what they read, what the model expects, how it goes on.
const $ = (id) => document.getElementById(id);
const model = unpack(JSON.parse($("data").textContent));
const characters = [...model.characters], idOf = new Map(characters.map((c, id) => [c, id]));
// in the order of masks
const places = model.heads.flatMap((count, i) => Array.from({ length: count }, (_, h) => [i, h]));
const everyHead = () => model.heads.map((count) => new Array(count).fill(true));
const nameOf = ([i, h]) => `head ${model.head_ids[i][h]} of layer\u00a0${i}`;
const shown = (c) => (c === " " ? "␣" : c === "\n" ? "↵" : c === "\t" ? "⇥" : c);
const quoted = (c) => (c === " " ? "a space" : c === "\n" ? "a new line" : `“${shown(c)}”`);
const percent = (x) => (x > 0 && x < 0.005 ? "under 1 %" : `${Math.round(100 * x)} %`);
const bits = (x) => (Number.isFinite(x) ? x.toFixed(2) : "–");
const number = (x) => x.toLocaleString("en");

const ABOUT = {
  gates: ["Gates", "While the gates were trained each open head had a price, and the weights "
    + "adapted. Only their choice is used here: the weights are those from before."],
  michel: ["Michel’s scores", "A head scores high if the loss changes much when its gate moves a "
    + "little (on held-out text). The lowest scores go first."],
  "least-squares": ["Least squares", "It takes the heads that the others can make up for best, and "
    + "then fits the weights that stay (repaired). In your sentence they are left as they are."],
  random: ["Random", "Heads drawn by lot. A method that is not better than this has learned "
    + "nothing about heads."],
};
const longest = model.config.relative ? 2 * model.config.T : model.config.T;
const state = {
  open: everyHead(), chosen: places[0], hovered: null, query: null, method: null, example: 0,
};
let ids = [], whole = null, now = null;

const surprises = ({ log2p }, of = ids) => of.slice(1).map((id, t) => -log2p[t][id]);
const mean = (x) => x.reduce((a, b) => a + b, 0) / x.length;
const openCount = () => state.open.flat().filter(Boolean).length;
const element = (name, text = "", attributes = {}) => {
  const made = Object.assign(document.createElement(name), { textContent: text });
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// The text as ids; characters that the model does not know are left out.
function take(text) {
  const known = [...text].filter((c) => idOf.has(c));
  const unknown = [...new Set([...text].filter((c) => !idOf.has(c)))];
  ids = known.slice(-longest).map((c) => idOf.get(c));
  if (!ids.length) ids = [idOf.get(" ") ?? 0];
  $("dropped").textContent = unknown.length
    ? `Not in the model’s alphabet, left out: ${unknown.join(" ")}`
    : known.length > longest ? `The last ${longest} characters are read.` : "";
  whole = readText(model, ids, everyHead());
  state.query = null;
}

function update() {
  now = openCount() < places.length ? readText(model, ids, state.open) : whole;
  drawScore(); drawSurprise(); drawGrid(); drawHead(); drawNext();
  if (model.opened) return;
  drawMethods();
  clearTimeout(update.timer);
  update.timer = setTimeout(() => { link(); drawGoal(); write(); }, 400); // what takes longer
}

// Takes a head away or brings it back.
function click([i, h]) {
  state.open[i][h] = !state.open[i][h];
  state.method = null;
  update();
}

const digitsOf = (open) => open.flat().map(Number).join("");
const openFrom = (digits) => {
  const open = everyHead();
  places.forEach(([i, h], place) => { open[i][h] = digits[place] === "1"; });
  return open;
};

// Puts the choice of heads and the sentence into the page's address, and returns it.
function link() {
  const nibbles = digitsOf(state.open).match(/.{1,4}/g) ?? [];
  const heads = nibbles.map((four) => parseInt(four.padEnd(4, "0"), 2).toString(16)).join("");
  const text = [...$("text").value].slice(-longest).join("");
  const address = new URL(location.href);
  address.hash = new URLSearchParams({ heads, text });
  try { history.replaceState(null, "", address.href); } catch { /* not in this frame */ }
  return address.href;
}

// Takes them from there, where they are.
function follow() {
  const given = new URLSearchParams(location.hash.slice(1)), heads = given.get("heads") ?? "";
  if (/^[0-9a-f]+$/i.test(heads) && heads.length === Math.ceil(places.length / 4)) {
    const four = (x) => parseInt(x, 16).toString(2).padStart(4, "0");
    state.open = openFrom([...heads].map(four).join(""));
    state.method = "a link"; // of somebody's: no record
  }
  if (given.get("text")) $("text").value = given.get("text");
  take($("text").value);
}

// The fewest heads with at most so many bits per character of the passage, by hand and by methods.
function drawGoal() {
  const mask = digitsOf(state.open);
  if (!model.passage || drawGoal.mask === mask) return;
  drawGoal.mask = mask;
  const passage = [...model.passage].map((c) => idOf.get(c));
  const measure = (open) => mean(surprises(readText(model, passage, open), passage));
  drawGoal.all ??= measure(everyHead());
  const goal = Math.max(3, Math.ceil(2 * drawGoal.all + 0.5) / 2), needed = measure(state.open);
  if (!state.method && needed <= goal && openCount() < (record() ?? Infinity)) record(openCount());
  $("t9").textContent = `The goal: fewest heads with at most ${goal} bits`;
  $("reached").textContent = `${bits(needed)} bits per character with these ${openCount()} heads, `
    + `${bits(drawGoal.all)} with all, of a fixed passage that the model was not trained on.`;
  const fewest = (rows, column) => model.budgets.find((_, at) => rows[at][column] <= goal) ?? "–";
  const others = Object.entries(model.bits).map(([method, rows]) => (
    [ABOUT[method][0], fewest(rows, 2), fewest(rows, 3)]));
  $("records").replaceChildren(tableRow(["", "fewest heads", "repaired"], "th"),
    ...[["You", record() ?? "none yet", ""], ...others].map(([name, ...found]) => (
      tableRow([element("th", name), ...found]))));
}

// The reader's record for this model; kept where the browser allows that.
function record(heads) {
  const key = `tinyprune ${model.weights.slice(-64)}`;
  if (heads !== undefined) record.heads = heads;
  try {
    if (heads !== undefined) localStorage.setItem(key, heads);
    record.heads ??= Number(localStorage.getItem(key)) || undefined;
  } catch { /* it lasts as long as the page */ }
  return record.heads;
}

function drawScore() {
  const [a, b] = [mean(surprises(whole)), mean(surprises(now))], count = openCount(), more = b - a;
  const gone = places.length - count, differs = Math.abs(more) >= 0.005;
  const said = differs ? `${more > 0 ? "+" : "−"}${bits(Math.abs(more))}` : "the same";
  const change = element(more >= 0.005 ? "strong" : "span", said);
  $("bits").textContent = bits(b);
  $("detail").replaceChildren(...(gone ? [change, ` without ${gone} of ${places.length} heads`]
    : [`with all ${places.length} heads`]));
  $("reset").setAttribute("aria-disabled", String(count === places.length));
}

function drawSurprise() {
  const [a, b] = [surprises(whole), surprises(now)], height = (x) => `${Math.min(x, 10) * 3.9}px`;
  $("surprise").replaceChildren(...ids.map((id, t) => {
    const made = element("span"), letter = element("em", shown(characters[id]));
    if (characters[id] === " ") letter.className = "blank";
    if (t) {
      const [one, other] = [a[t - 1], b[t - 1]], least = Math.min(one, other);
      const more = element("i", "", { class: other > one ? "more" : "less" });
      const base = element("i", "", { class: "now" });
      more.style.height = height(Math.min(Math.abs(other - one), 10 - Math.min(least, 10)));
      base.style.height = height(least);
      made.append(more, base);
      made.title = `${bits(other)} bits, with all heads ${bits(one)}`;
    }
    made.append(letter);
    return made;
  }));
  const each = ids.slice(1).map((id, t) => `${shown(characters[id])} ${b[t].toFixed(1)}`);
  $("surprise").setAttribute("aria-label", `Bits of each character: ${each.join(", ")}`);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shade = (weight) => Math.sqrt(weight); // small weights can be seen

function drawGrid() {
  const n = ids.length, size = Math.min(n, model.config.T), first = n - size;
  const mark = colour("--mark").split(",").map(Number);
  document.querySelectorAll("#grid button").forEach((button, at) => {
    const [i, h] = places[at], found = now.weights[i][h];
    button.setAttribute("aria-pressed", String(state.open[i][h]));
    if (!found) return;
    const canvas = button.firstChild, picture = new ImageData(size, size);
    canvas.width = canvas.height = size;
    for (let t = 0; t < size; t++) for (let j = 0; j <= t; j++) {
      const weight = found.a[(first + t) * n + first + j];
      picture.data.set([...mark, 255 * shade(weight)], 4 * (t * size + j));
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  });
}

// The head that is pointed at, or else the one that was chosen.
function drawHead() {
  const [i, h] = state.hovered ?? state.chosen, found = now.weights[i][h];
  const n = ids.length, t = state.query ?? n - 1;
  document.querySelectorAll("#grid button").forEach((button, at) => {
    const isChosen = places[at][0] === state.chosen[0] && places[at][1] === state.chosen[1];
    button.classList.toggle("chosen", places[at][0] === i && places[at][1] === h);
    button.tabIndex = isChosen ? 0 : -1;
  });
  const row = found ? found.a.subarray(t * n, (t + 1) * n) : null, name = nameOf([i, h]);
  const reader = quoted(characters[ids[t]]);
  $("t3").textContent = found ? `What ${name} reads, to guess the character after ${reader}`
    : `H${name.slice(1)} is taken away: it reads nothing`;
  let said = "Click on its square to bring it back.";
  if (row) {
    const best = row.reduce((most, x, j) => (x > row[most] ? j : most), 0), back = t - best;
    const before = `${back} ${back === 1 ? "character" : "characters"} before`;
    const where = back === 0 ? "that is the character that reads" : before;
    said = `It puts ${percent(row[best])} of its weight on ${quoted(characters[ids[best]])} `
      + `(${where})`;
    const own = `, and ${percent(found.own[t])} on its persistent vectors, which belong to no text`;
    said += model.config.attended ? `${own}.` : ".";
  }
  $("reads").textContent = said;
  const strip = $("strip"), letters = ids.map((id, j) => {
    const c = characters[id], made = element("span", shown(c));
    const alpha = row && j <= t ? shade(row[j]) : 0;
    made.style.background = `rgba(${colour("--mark")}, ${alpha})`;
    made.classList.toggle("blank", c === " " && alpha < 0.4);
    made.classList.toggle("after", j > t);
    made.classList.toggle("reads", j === t);
    made.classList.toggle("full", alpha > 0.66);
    made.title = row && j <= t ? percent(row[j]) : "";
    made.onclick = () => { state.query = j; drawHead(); drawNext(); };
    return made;
  });
  strip.replaceChildren(...letters);
  strip.setAttribute("aria-valuenow", t + 1);
  strip.setAttribute("aria-valuemax", n);
  strip.setAttribute("aria-valuetext", `character ${t + 1}, ${reader}. ${said}`);
  drawInside();
}

// The likeliest characters; the one that all heads together expect keeps a row, whatever its rank.
function drawNext() {
  const t = state.query ?? ids.length - 1, p = now.log2p[t], before = whole.log2p[t];
  const ranked = [...p.keys()].sort((a, b) => p[b] - p[a]), best = ranked.slice(0, 8);
  const former = before.reduce((most, x, id) => (x > before[most] ? id : most), 0);
  if (!best.includes(former)) best[7] = former;
  const read = ids.slice(Math.max(0, t - 11), t + 1).map((id) => shown(characters[id])).join("");
  $("t4").textContent = `What comes after “${read}”? The likeliest characters`;
  const chance = (x) => percent(2 ** x).replace("under ", "<");
  $("next").replaceChildren(...best.flatMap((id) => {
    const bar = element("div"), fill = element("i"), mark = element("b");
    fill.style.width = `${100 * 2 ** p[id]}%`;
    mark.style.left = `calc(${100 * 2 ** before[id]}% - 1px)`;
    bar.append(fill, mark);
    const letter = element("code", shown(characters[id])), rank = ranked.indexOf(id) + 1;
    if (id === former) letter.className = "former";
    const said = rank > 8 ? `, rank ${rank}` : "";
    return [letter, bar, element("span", `${chance(p[id])} (${chance(before[id])})${said}`)];
  }));
}

function drawMethods() {
  const slider = $("stay"), at = Number(slider.value);
  const buttons = [...document.querySelectorAll(".method")];
  const count = `${model.budgets[at]} of ${places.length}`;
  slider.setAttribute("aria-valuetext", `${count} heads`);
  $("staying").textContent = count;
  for (const one of buttons) one.setAttribute("aria-pressed", String(one.value === state.method));
  const more = model.bits ? `${number(model.held_out)} held-out characters (repaired: what stays `
    + "is fitted to the whole model by least squares), and of " : "";
  $("method").textContent = ABOUT[state.method]?.[1] ?? "Choose how many heads to keep, then press "
    + "a method. Below its name: bits per character with the heads that it would keep, "
    + `of ${more}your sentence.`;
  const key = `${at} ${ids}`;
  if (drawMethods.key === key) return;
  drawMethods.key = key;
  clearTimeout(drawMethods.timer);
  const say = (button, own) => {
    const [heldOut, repaired] = model.bits?.[button.value][at] ?? [];
    const known = `${bits(heldOut)} bits on held-out text (${bits(repaired)} repaired); ${own}`;
    button.querySelector("small").textContent = `${count} heads: `
      + `${model.bits ? known : `${own} bits`} on your sentence`;
  };
  buttons.forEach((button) => say(button, "…"));
  const waiting = [...buttons]; // one at a time, when the typing pauses
  const next = () => {
    const button = waiting.shift(), open = openFrom(model.choices[button.value][at]);
    say(button, bits(mean(surprises(readText(model, ids, open)))));
    if (waiting.length) drawMethods.timer = setTimeout(next);
  };
  drawMethods.timer = setTimeout(next, 250);
}

function apply(method) {
  state.method = method;
  state.open = openFrom(model.choices[method][Number($("stay").value)]);
  update();
}

// New lines can be seen, and many of them are no long gap.
const written = (c, before) => (c === "\n" ? "↵" : before.endsWith("↵") ? `\n${c}` : c);

// The head that puts most weight on one character other than the one that reads.
function mostFocused() {
  const n = ids.length, last = ([i, h]) => whole.weights[i][h].a.subarray((n - 1) * n, n * n - 1);
  const most = (place) => Math.max(...last(place));
  return places.reduce((best, place) => (most(place) > most(best) ? place : best), places[0]);
}

// Both continuations, a few characters at a time, so that the page answers meanwhile.
function write() {
  const run = (write.run = (write.run ?? 0) + 1);
  const temperature = Number($("temperature").value), seed = Number($("seed").value) || 0;
  $("degrees").textContent = temperature ? temperature.toFixed(1) : "0, the likeliest character";
  const typed = ids.slice(-24).map((id) => characters[id]).join("");
  const jobs = [["whole", everyHead()], ["left", state.open]].map(([name, open]) => {
    const text = document.createTextNode("");
    $(name).replaceChildren(element("span", `…${typed}`, { class: "typed" }), text);
    return [text, continued(model, ids, open, { temperature, seed })];
  });
  let count = 0;
  const step = () => {
    if (run !== write.run) return;
    for (const [text, draws] of jobs) for (let i = 0; i < 4; i++) {
      text.data += written(characters[draws.next().value], text.data);
    }
    if ((count += 4) < 160) setTimeout(step);
    else document.body.dataset.written = run;
  };
  step();
}

function begin() {
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const total = number(model.shapes.reduce((sum, [, shape]) => sum + size(shape), 0));
  $("about").textContent = `This page holds a whole language model: ${total} numbers, `
    + `${model.heads.length} layers, ${places.length} attention heads. Each head looks back at `
    + "what you type, in a way that it has learned. Click one away: if the model needed it, its "
    + "guesses get worse.";
  $("t2").textContent = `${places.length} heads read your sentence, most of them differently`;
  const origin = model.text ? `, trained on ${model.text}` : "";
  $("origin").textContent = `Stage ${model.stage} of a run of tinyprune${origin}. `
    + "Everything is computed in this page; nothing is sent or loaded.";
  const columns = Math.max(...model.head_ids.flat(), 0) + 1, grid = $("grid");
  grid.style.gridTemplateColumns = `22px repeat(${columns}, minmax(0, 1fr))`;
  const title = (said) => element("span", said, { "aria-hidden": true });
  grid.append(element("span"), ...Array.from({ length: columns }, (_, h) => title(h)));
  model.heads.forEach((count, i) => {
    grid.append(title(i));
    for (let column = 0; column < columns; column++) {
      const h = model.head_ids[i].indexOf(column);
      if (h < 0) { grid.append(element("span")); continue; }
      const place = [i, h], label = `H${nameOf(place).slice(1)}`;
      const button = element("button", "", { type: "button", "aria-label": label });
      button.append(element("canvas"));
      button.onfocus = () => { state.chosen = place; drawHead(); };
      button.onpointerenter = (event) => {
        if (event.pointerType !== "mouse") return;
        state.hovered = place;
        drawHead();
      };
      button.onpointerleave = () => { state.hovered = null; drawHead(); };
      button.onclick = () => {
        state.chosen = place;
        const looks = document.querySelector("[name=click]:checked").value === "look";
        return looks ? drawHead() : click(place);
      };
      button.onkeydown = (event) => {
        const down = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
        const right = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
        if (!down && !right) return;
        event.preventDefault();
        const others = [...grid.querySelectorAll("button")].filter((other) => other !== button);
        const there = others.map((other) => {
          const a = other.getBoundingClientRect(), b = button.getBoundingClientRect();
          const x = a.x - b.x, y = a.y - b.y;
          const ahead = x * right + y * down, aside = Math.abs(x * down) + Math.abs(y * right);
          return { other, cost: ahead > 1 ? ahead + 3 * aside : Infinity };
        });
        const nearer = (least, one) => (one.cost < least.cost ? one : least);
        const best = there.reduce(nearer, { cost: Infinity });
        best.other?.focus();
      };
      grid.append(button);
    }
  });
  $("methods").append(...Object.keys(model.choices).map((method) => {
    const known = { type: "button", class: "method", "aria-pressed": false, value: method };
    const button = element("button", ABOUT[method][0], known);
    button.append(element("small", "…"));
    button.onclick = () => apply(method);
    return button;
  }));
  $("stay").max = model.budgets.length - 1;
  $("stay").value = Math.round((model.budgets.length - 1) / 2);
  $("stay").oninput = () => (ABOUT[state.method] ? apply(state.method) : drawMethods());
  $("reset").onclick = () => { state.open = everyHead(); state.method = null; update(); };
  const swatches = [0.01, 0.1, 0.3, 1].map((weight) => {
    const key = element("span", "", { class: "key" }), box = element("i");
    box.style.background = `rgba(var(--mark), ${shade(weight)})`;
    key.append(box, `${100 * weight} %`);
    return key;
  });
  const scale = element("span", "Share of its weight:", { class: "key" });
  $("scale").replaceChildren(scale, ...swatches);
  $("strip").onkeydown = (event) => {
    const n = ids.length, t = state.query ?? n - 1;
    const ways = { ArrowLeft: t - 1, ArrowRight: t + 1, ArrowDown: t - 1, ArrowUp: t + 1 };
    const there = { ...ways, Home: 0, End: n - 1 }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    state.query = Math.min(Math.max(there, 0), n - 1);
    drawHead(); drawNext();
  };
  $("text").oninput = () => { // fast typing: once for several keys
    clearTimeout(take.timer);
    take.timer = setTimeout(() => { take($("text").value); update(); });
  };
  $("another").onclick = () => {
    $("text").value = model.examples[++state.example % model.examples.length];
    $("text").oninput();
  };
  $("temperature").oninput = $("seed").oninput = write;
  $("draw").onclick = () => { $("seed").value = Number($("seed").value) + 1; write(); };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => { drawGrid(); drawHead(); });
  $("gate").onclick = () => click(state.chosen);
  $("copy").onclick = () => {
    const address = link(), said = (text) => { $("copied").textContent = text; };
    const failed = () => said("Copy it from the browser’s address bar.");
    navigator.clipboard?.writeText(address).then(() => said("Copied."), failed) ?? failed();
  };
  addEventListener("hashchange", () => { follow(); update(); });
  $("goal").hidden = !model.passage;
  drawHand();
  $("text").value = model.examples[0];
  follow();
  state.chosen = model.opened ?? mostFocused();
  document.body.classList.toggle("opened", Boolean(model.opened));
  update();
}
begin();
