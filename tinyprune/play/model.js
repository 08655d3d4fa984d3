"use strict";
// The forward pass of a model, as tinyprune/model/transformer.py has it, with the same letters: T
// characters that read, S that are read, width D, H heads of width Dh, N units or persistent
// vectors of a head, V characters that there are. A matrix is a flat array, row by row. A head that
// is closed is skipped: it costs nothing and adds nothing.

// Unpacks the weights: 16-bit floats in base64, one tensor after the other. Matrices are then
// transposed, (out, in): those that a head multiplies its output by, Wo and the values of its
// network, for each head by itself.
function unpack(data) {
  const bytes = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer);
  const model = { ...data, p: {}, r: {} }, { D, Dh } = data.config;
  let at = 0;
  for (const [name, shape] of data.shapes) {
    const size = shape.reduce((a, b) => a * b, 1);
    const flat = Float32Array.from(halves.subarray(at, (at += size)), float16);
    const isMatrix = name.endsWith(".net.pv") || /\.W[^.]*$/.test(name);
    if (name.endsWith(".Wo")) model.p[name] = transposed(flat, Dh, D);
    else if (isMatrix) model.p[name] = transposed(flat, ...shape.slice(-2));
    else model.p[name] = flat;
  }
  return model;
}

function float16(half) {
  const exponent = (half >> 10) & 31, fraction = half & 1023;
  const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
  return half >> 15 ? -size : size;
}

// The transposes of matrices (n, m), one after the other.
function transposed(x, n, m) {
  const out = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += n * m) {
    for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) out[at + j * n + i] = x[at + i * m + j];
  }
  return out;
}

// out (n, m) += x (n, k) Wᵀ, with W (m, k), in blocks of four rows by two columns: what is read
// from memory is then used for several products, which takes half of the time.
function addProduct(out, x, W, n, k, m) {
  const rows = n - (n % 4), columns = m - (m % 2);
  for (let i = 0; i < rows; i += 4) for (let j = 0; j < columns; j += 2) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
    for (let l = 0, at = i * k, w = j * k; l < k; l++, at++, w++) {
      const a = W[w], b = W[w + k];
      const x0 = x[at], x1 = x[at + k], x2 = x[at + 2 * k], x3 = x[at + 3 * k];
      s0 += x0 * a; s1 += x1 * a; s2 += x2 * a; s3 += x3 * a;
      t0 += x0 * b; t1 += x1 * b; t2 += x2 * b; t3 += x3 * b;
    }
    const at = i * m + j;
    out[at] += s0; out[at + m] += s1; out[at + 2 * m] += s2; out[at + 3 * m] += s3;
    out[at + 1] += t0; out[at + m + 1] += t1;
    out[at + 2 * m + 1] += t2; out[at + 3 * m + 1] += t3;
  }
  // what is left at the edges
  for (let i = 0; i < n; i++) for (let j = i < rows ? columns : 0; j < m; j++) {
    let sum = 0;
    for (let l = 0; l < k; l++) sum += x[i * k + l] * W[j * k + l];
    out[i * m + j] += sum;
  }
  return out;
}

function product(x, W, n, k, m, bias) {
  const out = new Float64Array(n * m);
  if (bias) for (let i = 0; i < n; i++) out.set(bias, i * m);
  return addProduct(out, x, W, n, k, m);
}

function layerNorm(x, scale, bias, D, eps) {
  const out = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += D) {
    let mean = 0, square = 0;
    for (let d = 0; d < D; d++) mean += x[at + d] / D;
    for (let d = 0; d < D; d++) square += (x[at + d] - mean) ** 2 / D;
    const std = Math.sqrt(square + eps);
    for (let d = 0; d < D; d++) out[at + d] = (x[at + d] - mean) / std * scale[d] + bias[d];
  }
  return out;
}

// In place: scores into weights that add up to 1. A score of −∞ becomes 0.
function softmax(s) {
  const most = s.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let j = 0; j < s.length; j++) sum += s[j] = Math.exp(s[j] - most);
  for (let j = 0; j < s.length; j++) s[j] /= sum;
  return s;
}

const plus = (x, bias) => x.map((value, at) => value + bias[at % bias.length]);
const latest = (x, size) => x.slice(Math.max(0, x.length - size));

function joined(x, y) {
  const out = new Float64Array(x.length + y.length);
  out.set(x);
  out.set(y, x.length);
  return out;
}

// Rows i of x and j of y, of n numbers each: their product.
function dot(x, i, y, j, n) {
  let sum = 0;
  for (let d = 0, a = i * n, b = j * n; d < n; d++, a++, b++) sum += x[a] * y[b];
  return sum;
}

// attention_forward of tinyprune/ops/attention.py for one head: q (T, Dh), k and v (S, Dh), r with
// a row for each distance, u and w (Dh), pk and pv (N, Dh). Returns its scores by content and by
// position before the division, (T, S), all scores s and weights a, (T, S + N), outputs o (T, Dh).
function attend({ q, k, v, r, u, w, pk, pv }, Dh, span = null) {
  const T = q.length / Dh, S = k.length / Dh, N = pk ? pk.length / Dh : 0, root = 1 / Math.sqrt(Dh);
  const content = new Float64Array(T * S), position = r && new Float64Array(T * S);
  const s = new Float64Array(T * (S + N)), a = new Float64Array(s.length);
  const o = new Float64Array(T * Dh);
  const query = r ? plus(q, u) : q, placed = r && plus(q, w);
  const add = (t, weight, x, j) => {
    for (let d = 0; d < Dh; d++) o[t * Dh + d] += weight * x[j * Dh + d];
  };
  for (let t = 0; t < T; t++) {
    const scores = s.subarray(t * (S + N), (t + 1) * (S + N));
    for (let j = 0; j < S; j++) {
      const distance = t + S - T - j, at = t * S + j;
      if (distance < 0 || (span !== null && distance > span)) {
        scores[j] = -Infinity;
        continue;
      }
      content[at] = dot(query, t, k, j, Dh);
      if (r) position[at] = dot(placed, t, r, distance, Dh);
      scores[j] = (content[at] + (r ? position[at] : 0)) * root;
    }
    for (let j = 0; j < N; j++) scores[S + j] = dot(q, t, pk, j, Dh);
    const weights = a.subarray(t * (S + N), (t + 1) * (S + N));
    weights.set(scores);
    softmax(weights);
    for (let j = 0; j < S; j++) if (weights[j]) add(t, weights[j], v, j);
    for (let j = 0; j < N; j++) add(t, weights[S + j] * Math.sqrt(N), pv, j);
  }
  return { S, content, position, s, a, o };
}

// One head of layer i on n (T, D). Adds what it makes to y (T, D) and returns what `attend` does,
// and its keys and values, of the memory before the segment and of the segment.
function head(model, i, h, n, T, y, memory) {
  const { D, Dh, N, attended, span, relative } = model.config, p = model.p;
  const own = (name, size) => p[`layers.${i}.${name}`]?.subarray(h * size, (h + 1) * size);
  const [q, k, v] = ["q", "k", "v"].map(
    (x) => product(n, own(`W${x}`, Dh * D), T, D, Dh, own(`b${x}`, Dh)));
  const r = relative
    && (model.r[`${i} ${h}`] ??= product(p.R, own("Wr", Dh * D), p.R.length / D, D, Dh));
  const read = {
    q, r, k: memory ? joined(memory.k, k) : k, v: memory ? joined(memory.v, v) : v,
    u: own("u", Dh), w: own("w", Dh),
    pk: attended && own("pk", N * Dh), pv: attended && own("pv", N * Dh),
  };
  const found = attend(read, Dh, span);
  addProduct(y, found.o, own("Wo", D * Dh), T, Dh, D);
  return { ...found, k: read.k, v: read.v };
}

// Adds the units of a network or a feed-forward block to y: max(n W1ᵀ + b1, 0) W2ᵀ, with W1 (F, D)
// and W2 (D, F).
function addUnits(y, n, W1, b1, W2, T, D, F) {
  addProduct(y, product(n, W1, T, D, F, b1).map((x) => Math.max(x, 0)), W2, T, F, D);
}

// The norm `name` of layer i of x (T, D).
const normed = (model, i, name, x) => {
  const of = (part) => model.p[`layers.${i}.${name}.${part}`];
  return layerNorm(x, of("scale"), of("bias"), model.config.D, model.config.eps);
};

// Adds the network of head h to y: its N hidden units on n (T, D).
function addNetwork(model, i, h, n, T, y) {
  const { D, N } = model.config;
  const own = (name, size) => model.p[`layers.${i}.net.${name}`].subarray(h * size, (h + 1) * size);
  addUnits(y, n, own("pk", N * D), own("pb", N), own("pv", N * D), T, D, N);
}

// Reads a segment: ids (T,) after the memory of an earlier call. `open[i][h]` says which heads
// compute. Returns logits (T, V), for each layer the stream (T, D) before and after its attention,
// for each layer and head what `head` returns (null if closed), and memory of the latest `keep`
// characters.
function forward(model, ids, open, memory = null, keep = model.config.M) {
  const { D, F, V, eps, networks, scaled, relative } = model.config, p = model.p, T = ids.length;
  const read = memory ? memory.read : 0, x = new Float64Array(T * D), heads = [], streams = [];
  for (let t = 0; t < T; t++) for (let d = 0; d < D; d++) {
    x[t * D + d] = p.embedding[ids[t] * D + d] * (scaled ? Math.sqrt(D) : 1);
    if (!relative) x[t * D + d] += p.positions[(read + t) * D + d];
  }
  const add = (bias) => { if (bias) for (let at = 0; at < x.length; at++) x[at] += bias[at % D]; };
  for (let i = 0; i < model.heads.length; i++) {
    const of = (name) => p[`layers.${i}.${name}`], before = x.slice();
    const earlier = memory?.heads[i] ?? [];
    let n = normed(model, i, "ln", x);
    heads.push(open[i].map(
      (isOpen, h) => (isOpen ? head(model, i, h, n, T, x, earlier[h]) : null)));
    add(of("bo"));
    streams.push([before, x.slice()]);
    if (networks) {
      n = normed(model, i, "net.ln", x);
      open[i].forEach((isOpen, h) => { if (isOpen) addNetwork(model, i, h, n, T, x); });
      add(of("net.bo"));
    } else if (F) {
      n = normed(model, i, "ffn.ln", x);
      addUnits(x, n, of("ffn.W1"), of("ffn.b1"), of("ffn.W2"), T, D, F);
      add(of("ffn.b2"));
    }
  }
  const h = layerNorm(x, p["ln.scale"], p["ln.bias"], D, eps);
  const logits = product(h, p.unembedding ?? p.embedding, T, D, V, p.out_bias);
  const kept = heads.map((layer) => layer.map((one) => one && remembered(model, one, keep)));
  return { logits, streams, heads, memory: keep ? { read: read + T, heads: kept } : null };
}

const remembered = ({ config: { Dh } }, { k, v }, keep) => (
  { k: latest(k, keep * Dh), v: latest(v, keep * Dh) });

// Reads a text in segments of T, each with the memory of those before. Returns log₂ p of every next
// character, (n, V), for each layer and head its weights on the text itself, (n, n), and those on
// persistent vectors together, (n,), and the streams of each segment.
function readText(model, ids, open) {
  const { T, V, attended } = model.config, n = ids.length, log2p = [], streams = [];
  const none = () => ({ a: new Float64Array(n * n), own: new Float64Array(n) });
  const weights = open.map((layer) => layer.map((isOpen) => (isOpen ? none() : null)));
  let memory = null;
  for (let start = 0; start < n; start += T) {
    const segment = ids.slice(start, start + T), found = forward(model, segment, open, memory);
    memory = found.memory;
    streams.push(found.streams);
    for (let t = 0; t < segment.length; t++) {
      log2p.push(softmax(found.logits.slice(t * V, (t + 1) * V)).map(Math.log2));
      weights.forEach((layer, i) => layer.forEach((one, h) => {
        if (!one) return;
        const { a, S } = found.heads[i][h], size = S + attended;
        const row = a.subarray(t * size, (t + 1) * size);
        const first = start + segment.length - S; // the character of the first key
        one.a.set(row.subarray(0, S), (start + t) * n + first);
        for (let j = 0; j < attended; j++) one.own[start + t] += row[S + j];
      }));
    }
  }
  return { log2p, weights, streams };
}

// Continues a text, one character after the other; the same seed gives the same draws, whatever the
// heads. Temperature 0 takes the likeliest character. A model with learned positions, if all are
// taken, reads the latest half again.
function* continued(model, ids, open, { temperature, seed }) {
  const { T, M, V, span, relative } = model.config, random = generator(seed), all = [...ids];
  const keep = relative ? (span === null ? M + T - 1 : M) : T;
  const next = (news, before) => forward(model, news, open, before, keep);
  const segments = [];
  for (let start = 0; start < all.length; start += T) segments.push(all.slice(start, start + T));
  let found = { memory: null };
  for (const segment of segments) found = next(segment, relative ? found.memory : null);
  while (true) {
    const p = found.logits.slice(-V);
    const most = p.reduce((best, x, id) => (x > p[best] ? id : best), 0);
    let id = most, u = random();
    if (temperature > 0) {
      const weights = softmax(p.map((x) => x / temperature));
      for (id = 0; id < V - 1 && (u -= weights[id]) > 0;) id++;
    }
    all.push(id);
    yield id;
    const full = !relative && found.memory.read >= T;
    found = full ? next(all.slice(-(T >> 1)), null) : next([id], found.memory);
  }
}

// Random numbers in 0 … 1 (mulberry32).
function generator(seed) {
  return () => {
    let t = (seed = (seed + 0x6d2b79f5) | 0);
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
