// The playground: latents of ten modes in a plane, and codes that the reader moves, trains, loses and cures.
//
// The first part is the module's arithmetic on plain arrays, in double precision: a test runs the same steps in both.
// The second part draws it. `render` is for anywidget, `mount` for a web page without a kernel; nothing is fetched.

// ---------------------------------------------------------------- steps, as in vqnotes

export const REMEDIES = ['restart', 'expiry', 'LRU', 'CVQ'];
const MEMORY = 0.99; // of the averages that restart, expiry and CVQ go by
const THRESHOLD = {restart: size => 1 / size.latents, expiry: size => 0.1 / size.codes}; // as a share of the latents
const PATIENCE = 20, NOISE = 0.01; // of LRU
export const PLACED = 0.99; // a warm-up places the codes once the latents have spread so far

// Numbers of little-endian float32 in base64.
function decoded(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}

// What is computed from, out of what Python gives (`plane` of playground.py): arrays, two numbers to a point.
export function unpacked(plane) {
  const data = {...plane, labels: Uint8Array.from(plane.labels)};
  for (const name of ['latents', 'codes', 'share', 'centroids', 'centroid_share']) data[name] = decoded(plane[name]);
  return data;
}

// The state before the first step. Of all that can go by how often a code is used, each keeps its own account.
export function begin(data) {
  const size = data.codes.length / 2;
  const state = {
    step: 0, spread: data.spread, warming: false, draws: data.draws,
    latents: data.latents.map(value => value * data.spread),
    codes: data.codes.slice(), share: data.share.slice(),
    use: new Float64Array(size), drawn: new Float64Array(size), idle: new Float64Array(size),
  };
  startAccounts(state);
  return state;
}

function startAccounts(state) {
  state.use.fill(1 / state.use.length); // of restart and expiry
  state.drawn.set(state.share); // of CVQ
  state.idle.fill(0); // of LRU
}

// One training step. rule: "EMA", "gradient" or "Lloyd" (moving averages that keep nothing of the old).
// drift: the share of the way to their full width that the latents go. follow: 1 - decay, or the learning rate.
export function step(state, data, {rule, drift, follow, remedy = null}) {
  state.step += 1;
  state.spread += drift * (1 - state.spread);
  state.latents = data.latents.map(value => value * state.spread);
  if (state.warming && state.spread < PLACED) return;
  if (state.warming) placeCodes(state, data);
  const {index} = nearest(state.latents, state.codes);
  const {hits, means} = meansOf(state.latents, state.codes, index);
  const before = state.codes.slice();
  if (rule !== 'gradient') average(state, hits, means, rule === 'Lloyd' ? 0 : 1 - follow);
  replace(state, hits, remedy);
  if (rule === 'gradient') // of the mean square over latents and directions; a code that starts anew gets it, too
    for (let i = 0; i < before.length; i++) state.codes[i] += follow * hits[i >> 1] * (means[i] - before[i]);
}

function placeCodes(state, data) {
  state.codes = data.centroids.map(value => value * state.spread);
  state.share.set(data.centroid_share);
  state.warming = false;
  startAccounts(state);
}

// For each latent its nearest code, the lowest of equals, and the sum of the squared distances; for each code its
// nearest latent.
export function nearest(latents, codes) {
  const size = codes.length / 2, index = new Int32Array(latents.length / 2);
  const least = new Float64Array(size).fill(Infinity), closest = new Int32Array(size);
  let error = 0;
  for (let n = 0; n < index.length; n++) {
    const x = latents[2 * n], y = latents[2 * n + 1];
    let best = Infinity, winner = 0;
    for (let k = 0; k < size; k++) {
      const dx = x - codes[2 * k], dy = y - codes[2 * k + 1], distance = dx * dx + dy * dy;
      if (distance < best) { best = distance; winner = k; }
      if (distance < least[k]) { least[k] = distance; closest[k] = n; }
    }
    index[n] = winner;
    error += best;
  }
  return {index, error, closest};
}

// The share of the latents that chose each code, and their mean: the code itself where there are none.
function meansOf(latents, codes, index) {
  const hits = new Float64Array(codes.length / 2), means = new Float64Array(codes.length);
  for (let n = 0; n < index.length; n++) {
    const k = index[n];
    hits[k] += 1;
    means[2 * k] += latents[2 * n];
    means[2 * k + 1] += latents[2 * n + 1];
  }
  for (let k = 0; k < hits.length; k++)
    for (const i of [2 * k, 2 * k + 1]) means[i] = hits[k] ? means[i] / hits[k] : codes[i];
  return {hits: hits.map(count => count / index.length), means};
}

function average(state, hits, means, decay) {
  for (let k = 0; k < hits.length; k++) {
    state.share[k] = decay * state.share[k] + (1 - decay) * hits[k];
    const rate = hits[k] ? (1 - decay) * hits[k] / state.share[k] : 0;
    for (const i of [2 * k, 2 * k + 1]) state.codes[i] += rate * (means[i] - state.codes[i]);
  }
}

// What a remedy does after the step. The accounts of all go on, so that each can be switched on at any time.
function replace(state, hits, remedy) {
  const size = hits.length, count = state.latents.length / 2;
  for (let k = 0; k < size; k++) {
    state.use[k] = MEMORY * state.use[k] + (1 - MEMORY) * hits[k];
    state.drawn[k] = MEMORY * state.drawn[k] + (1 - MEMORY) * hits[k];
    state.idle[k] = hits[k] ? 0 : state.idle[k] + 1;
  }
  if (remedy === 'CVQ') {
    const ranks = Array.from(hits, (_, k) => k), anchors = drawLatents(state, ranks, 0);
    for (let k = 0; k < size; k++) {
      const pull = Math.exp(-10 * size * state.drawn[k] / (1 - MEMORY) - 1e-3);
      for (const i of [2 * k, 2 * k + 1]) state.codes[i] += pull * (anchors[i] - state.codes[i]);
      state.share[k] *= 1 - pull;
    }
  } else if (remedy) {
    const limit = THRESHOLD[remedy]?.({latents: count, codes: size});
    const patience = Math.max(PATIENCE, Math.ceil(PATIENCE * size / count));
    const stale = Array.from(hits, (_, k) => (remedy === 'LRU' ? state.idle[k] >= patience : state.use[k] < limit));
    if (!stale.includes(true)) { // nothing to place, but the draw counts
      state.draws += 1;
      return;
    }
    let last = -1;
    const fresh = drawLatents(state, stale.map(is => (last += is)), remedy === 'LRU' ? NOISE : 0);
    for (let k = 0; k < size; k++) {
      if (!stale[k]) continue;
      state.codes.set(fresh.subarray(2 * k, 2 * k + 2), 2 * k);
      state.share[k] = 0;
      if (remedy === 'LRU') state.idle[k] = 0;
      if (remedy === 'expiry') state.use[k] = 1 / size;
    }
  }
}

// For each rank one of the latents, those of different ranks different; with noise relative to their length.
function drawLatents(state, ranks, noise) {
  state.draws += 1;
  const count = state.latents.length / 2, numbers = uniform(state.draws, count + (noise ? 2 * ranks.length : 0));
  const order = Array.from(numbers.subarray(0, count), (number, n) => [number, n]).sort(([a], [b]) => b - a);
  const chosen = new Float64Array(2 * ranks.length);
  ranks.forEach((rank, k) => {
    const [, n] = order[Math.max(rank, 0)], place = state.latents.subarray(2 * n, 2 * n + 2);
    const length = noise * Math.hypot(...place);
    for (const i of [0, 1])
      chosen[2 * k + i] = place[i] + (noise ? length * normal(numbers[count + 2 * k + i]) : 0);
  });
  return chosen;
}

// Random numbers in (0, 1) that depend on a whole number alone: those of the module, bit by bit.
export function uniform(state, count) {
  const start = hashed(state);
  return Float64Array.from({length: count}, (_, i) => ((hashed(start + i) >>> 9) + 0.5) / 2 ** 23);
}

function hashed(x) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

// The normal quantile, by Newton's method on its tail (Abramowitz and Stegun, 26.2.23, to begin with).
export function normal(p) {
  if (p > 0.5) return -normal(1 - p);
  const t = Math.sqrt(-2 * Math.log(p));
  let x = -(t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))));
  for (let i = 0; i < 3; i++) x -= (below(x) - p) * Math.sqrt(2 * Math.PI) * Math.exp(x * x / 2);
  return x;
}

// The share of a normal distribution that lies below x <= 0: by a series near 0, else by a continued fraction.
function below(x) {
  const density = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  if (x < -3) {
    let fraction = 0;
    for (let i = 60; i > 0; i--) fraction = i / (-x + fraction);
    return density / (-x + fraction);
  }
  let term = x, sum = x;
  for (let i = 3; i < 100; i += 2) sum += term *= x * x / i;
  return 0.5 + density * sum;
}

// ---------------------------------------------------------------- figures, as in vqnotes.metrics

// exp(entropy): how many of them are in use, if all that are were used equally.
export function effective(counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  return Math.exp(-counts.reduce((sum, count) => sum + (count && count / total * Math.log(count / total)), 0));
}

// counts: how many latents each code has. gap: the error over that of k-means, which grows as the latents' square.
export function figures(state, data) {
  const {index, error, closest} = nearest(state.latents, state.codes);
  const counts = new Float64Array(state.codes.length / 2), sits = new Float64Array(data.modes);
  for (const k of index) counts[k] += 1;
  for (const n of closest) sits[data.labels[n]] += 1;
  return {
    counts, index, perplexity: effective(counts), live: counts.filter(count => count).length,
    gap: error / index.length / (data.best * state.spread ** 2), modes: effective(sits),
  };
}

// ---------------------------------------------------------------- the view

const LATENT = '#0173b2', OWN = '#012f4a', LIVE = '#de8f05', SIDE = 400, KEPT = 600; // steps of a curve
const SLOW = 5000; // milliseconds between two sentences while it runs, so that a screen reader can keep up
const RULES = {Lloyd: 'Lloyd', EMA: 'moving averages (EMA)', gradient: 'gradient'};
const NAMES = {restart: 'random restart', expiry: 'expiry', LRU: 'least recently used (LRU)', CVQ: 'CVQ'};
const SLIDERS = {
  drift: {name: 'Encoder spreads latents', low: 0.001, high: 0.3, says: value => `${percent(value)} a step`},
  follow: {name: 'Codes follow', low: 0.003, high: 1, says: (value, rule) => ({
    Lloyd: 'all the way at once', EMA: `${percent(value)} a step (decay ${(1 - value).toFixed(3)})`,
    gradient: `learning rate ${value.toPrecision(2)}`})[rule]},
};
const CURVES = {
  perplexity: {of: size => `perplexity, of ${size} codes`, best: size => size, high: size => size},
  gap: {of: () => 'gap: times the error of k-means', best: () => 1, high: () => 100, scale: Math.log},
  modes: {of: (size, modes) => `of ${modes} modes covered`, best: (_, modes) => modes, high: (_, modes) => modes},
};
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
const STYLE = `
.vqnotes-playground { background: #fff; color: #222; color-scheme: light; border: 1px solid #bbb; border-radius: 6px;
  position: relative; padding: 12px; max-width: 860px; font: 14px/1.4 system-ui, sans-serif; }
.vqnotes-playground, .vqnotes-playground * { box-sizing: border-box; }
.vqp-row { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin-top: 10px; }
.vqp-main { display: flex; flex-wrap: wrap; gap: 12px 20px; }
.vqp-plane { position: relative; flex: 1 1 260px; max-width: 480px; aspect-ratio: 1; border: 1px solid #bbb; }
.vqp-plane canvas, .vqp-plane svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.vqp-plane svg { overflow: hidden; }
.vqp-side { flex: 1 1 230px; }
.vqp-figure { display: grid; grid-template-columns: auto 1fr; gap: 0 8px; align-items: baseline; margin-bottom: 8px; }
.vqp-figure b { font-size: 26px; font-variant-numeric: tabular-nums; line-height: 1.1; min-width: 2.4em; }
.vqp-figure canvas { grid-column: 1 / -1; width: 100%; height: 64px; }
.vqp-code { cursor: grab; touch-action: none; outline: none; }
.vqp-code .hit, .vqp-code .ring { fill: transparent; }
.vqp-code .live { fill: ${LIVE}; stroke: #222; stroke-width: 1; }
.vqp-code .halo { stroke: #fff; stroke-width: 4; }
.vqp-code .dead { stroke: #000; stroke-width: 1.6; }
.vqp-code .halo, .vqp-code .dead { fill: none; display: none; }
.vqp-code.is-dead .halo, .vqp-code.is-dead .dead { display: inline; }
.vqp-code.is-dead .live { display: none; }
.vqp-code:focus .ring { stroke: #222; stroke-width: 2; stroke-dasharray: 4 2; }
.vqp-plane.is-idle svg { opacity: 0.25; }
.vqnotes-playground button { font: inherit; color: #222; background: #f3f3f3; border: 1px solid #767676;
  border-radius: 4px; padding: 4px 12px; min-height: 30px; cursor: pointer; }
.vqnotes-playground button:hover { background: #e4e4e4; }
.vqnotes-playground button[aria-pressed="true"] { background: #012f4a; color: #fff; }
.vqnotes-playground :is(button, input):focus-visible { outline: 3px solid ${LATENT}; outline-offset: 2px; }
.vqnotes-playground fieldset { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; border: 0;
  margin: 10px 0 0; padding: 0; min-width: 0; }
.vqnotes-playground legend { float: left; width: auto; margin: 0 4px 0 0; padding: 0; border: 0; font-size: inherit; }
.vqnotes-playground input[type="radio"] { margin: 0; }
.vqnotes-playground label { display: flex; gap: 6px; align-items: center; margin: 0; }
.vqp-slider { flex: 1 1 100%; flex-wrap: wrap; }
.vqp-name { flex: 0 0 11.5em; }
.vqp-slider input { flex: 1 1 110px; min-width: 90px; max-width: 300px; margin: 0; accent-color: ${LATENT}; }
.vqp-says { flex: 0 0 13em; }
.vqp-help { margin: 10px 0 0; color: #444; font-size: 13px; }
.vqp-said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

const percent = value => `${+(100 * value).toPrecision(2)} %`;
const short = value => (value < 99.95 ? value.toFixed(1) : value < 1e4 ? value.toFixed(0) : value.toExponential(0));
let mounted = 0;

function page(data) {
  const id = ++mounted, size = data.codebook_size, row = parts => `<div class="vqp-row">${parts}</div>`;
  const sliders = Object.keys(SLIDERS).filter(name => name !== 'drift' || data.drift).map(name => `
    <label class="vqp-slider"><span class="vqp-name">${SLIDERS[name].name}</span>
    <input type="range" min="0" max="100" step="any" data-slider="${name}">
    <span class="vqp-says" data-says="${name}"></span></label>`);
  const rules = Object.keys(RULES).map(rule => `<label><input type="radio" name="vqp-${id}" value="${rule}"
    ${rule === data.rule ? 'checked' : ''}> ${RULES[rule]}</label>`);
  const buttons = data.remedies.map(name =>
    `<button data-remedy="${name}" aria-pressed="false">${NAMES[name]}</button>`);
  if (data.warmup) buttons.push('<button data-do="warmUp">warm-up: start anew without codes</button>');
  const shown = Object.keys(CURVES).map(name => `<div class="vqp-figure"><b data-figure="${name}"></b>
    <span>${CURVES[name].of(size, data.modes)}</span>
    <canvas data-curve="${name}" aria-hidden="true"></canvas></div>`);
  return `<style>${STYLE}</style>
    <div class="vqp-main"><div class="vqp-plane"><canvas aria-hidden="true"></canvas>
    <svg viewBox="0 0 ${SIDE} ${SIDE}" role="group" aria-describedby="vqp-help-${id}"
      aria-label="A plane with ${data.labels.length} latents of ${data.modes} modes, and ${size} codes"></svg></div>
    <div class="vqp-side">${shown.join('')}<div data-figure="state"></div>
    <div><span style="color: ${LATENT}">■</span> latents &ensp;<span style="color: ${LIVE}">●</span> live codes
    &ensp;✕ dead codes</div><div>┄ the best value, over the last ${KEPT} steps</div></div></div>
    ${row(`<button data-do="run">Run</button><button data-do="once">Step</button>
    <button data-do="anew">Start anew</button>`)}
    <fieldset><legend>Codes move by</legend>${rules.join('')}</fieldset>${row(sliders.join(''))}
    ${buttons.length ? `<fieldset><legend>Remedies</legend>${buttons.join('')}</fieldset>` : ''}
    <p class="vqp-help" id="vqp-help-${id}">Drag a code. By keys: Tab to the codes, the arrow keys move one (with Shift
    farther), Page Up and Page Down choose another.</p><p class="vqp-said" role="status"></p>`;
}

// Shows a playground in an element; gives what takes it away again.
export function mount(el, plane) {
  const data = unpacked(plane), size = data.codebook_size;
  const root = document.createElement('div');
  root.className = 'vqnotes-playground';
  root.dataset.lmSuppressShortcuts = 'true'; // JupyterLab leaves the arrow keys to it
  root.setAttribute('role', 'group');
  root.setAttribute('aria-label', 'Playground');
  root.innerHTML = page(data);
  el.replaceChildren(root);
  const find = selector => root.querySelector(selector), all = selector => [...root.querySelectorAll(selector)];
  const calm = matchMedia('(prefers-reduced-motion: reduce)');
  const reach = 1.08 * data.latents.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const options = {rule: data.rule, drift: data.drift, follow: data.follow, remedy: null};
  const said = find('.vqp-said'), svg = find('svg'), ended = new AbortController();
  let state, seen, curves, chosen = -1, held = null, frame = 0, before = 0, spoken = 0, waiting = 0;

  const codes = Array.from({length: size}, (_, k) => {
    const one = document.createElementNS('http://www.w3.org/2000/svg', 'g');
    one.innerHTML = '<circle class="hit" r="12"/><circle class="ring" r="10"/><circle class="live" r="4.5"/>'
      + '<path class="halo" d="M-4-4L4 4M-4 4L4-4"/><path class="dead" d="M-4-4L4 4M-4 4L4-4"/>';
    const attributes = {class: 'vqp-code', role: 'button', 'aria-roledescription': 'code', tabindex: k ? -1 : 0};
    for (const name in attributes) one.setAttribute(name, attributes[name]);
    return svg.appendChild(one);
  });

  // ------------------------------ what is seen and said

  function measure() {
    seen = state.warming ? null : figures(state, data);
    curves.push(seen && {perplexity: seen.perplexity, gap: seen.gap, modes: seen.modes});
    if (curves.length > KEPT) curves.shift();
  }

  function draw() {
    drawLatents();
    codes.forEach((one, k) => {
      const [x, y] = [state.codes[2 * k], -state.codes[2 * k + 1]].map(value => SIDE / 2 * (1 + value / reach));
      one.setAttribute('transform', `translate(${x.toFixed(2)} ${y.toFixed(2)})`);
      one.classList.toggle('is-dead', !!seen && !seen.counts[k]);
    });
    find('.vqp-plane').classList.toggle('is-idle', state.warming);
    for (const name in CURVES) {
      find(`[data-figure=${name}]`).textContent = seen ? short(seen[name]) : '–';
      drawCurve(find(`[data-curve=${name}]`), name);
    }
    const used = seen ? `${seen.live} of ${size} codes live` : 'codes not in use yet';
    const wide = data.drift ? ` · latents ${Math.round(100 * state.spread)} % spread` : '';
    find('[data-figure=state]').textContent = `step ${state.step} · ${used}${wide}`;
  }

  function fitted(canvas) { // as many pixels as the screen has there
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(length => Math.round(length * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const pen = canvas.getContext('2d');
    pen.clearRect(0, 0, width, height);
    return {pen, width, height, ratio};
  }

  function drawLatents() {
    const {pen, width, ratio} = fitted(find('.vqp-plane canvas')), dot = 2 * ratio;
    for (const own of [false, true]) { // those of the code in hand last, and darker
      pen.fillStyle = own ? OWN : LATENT;
      pen.globalAlpha = own ? 0.9 : 0.45;
      for (let n = 0; n < data.labels.length; n++) {
        if ((!!seen && seen.index[n] === chosen) !== own) continue;
        const x = state.latents[2 * n] / reach, y = -state.latents[2 * n + 1] / reach;
        pen.fillRect(width / 2 * (1 + x) - dot / 2, width / 2 * (1 + y) - dot / 2, dot, dot);
      }
    }
  }

  function drawCurve(canvas, name) {
    const {pen, width, height, ratio} = fitted(canvas), curve = CURVES[name], scale = curve.scale ?? (value => value);
    const [low, high] = [curve.scale ? 1 : 0, curve.high(size, data.modes)].map(scale), room = 4 * ratio;
    const up = value => {
      const share = Math.min(1, Math.max(0, (scale(value) - low) / (high - low)));
      return height - room - (height - 2 * room) * share;
    };
    pen.lineWidth = ratio;
    pen.strokeStyle = '#767676';
    pen.setLineDash([4 * ratio, 3 * ratio]);
    pen.beginPath();
    pen.moveTo(0, up(curve.best(size, data.modes)));
    pen.lineTo(width, up(curve.best(size, data.modes)));
    pen.stroke();
    pen.setLineDash([]);
    pen.strokeStyle = LATENT;
    pen.lineWidth = 2 * ratio;
    pen.beginPath();
    curves.forEach((one, i) => one && pen[curves[i - 1] ? 'lineTo' : 'moveTo'](i * width / KEPT, up(one[name])));
    pen.stroke();
  }

  function say(first = '') {
    spoken = performance.now();
    const found = seen ? `Perplexity ${short(seen.perplexity)} of ${size}, gap ${short(seen.gap)}, `
      + `${short(seen.modes)} of ${data.modes} modes covered, ${seen.live} codes live.` : 'Codes are not in use yet.';
    said.textContent = `${first}Step ${state.step}: ${found}`;
    codes.forEach((one, k) => one.setAttribute('aria-label', label(k)));
  }

  function label(k) {
    const has = seen && (seen.counts[k] ? `live, ${seen.counts[k]} latents` : 'dead');
    return `Code ${k + 1} of ${size}${has ? `, ${has}` : ''}, `
      + `x ${state.codes[2 * k].toFixed(2)}, y ${state.codes[2 * k + 1].toFixed(2)}`;
  }

  // ------------------------------ what happens

  function advance(steps) {
    for (let i = 0; i < steps; i++) {
      step(state, data, options);
      if (held) state.codes.set(held.place, 2 * held.code); // a code in hand stays there
      measure();
    }
    draw();
  }

  function tick(now) {
    const due = Math.min(3, Math.floor((now - before) * 60 / 1000 + 0.2)); // 60 steps a second on any screen
    if (due > 0) { before = now; advance(due); }
    if (now - spoken > SLOW) say();
    frame = requestAnimationFrame(tick);
  }

  const actions = {
    run() {
      if (frame) return actions.pause();
      if (calm.matches) { // nothing moves by itself: the end of a run at once
        do advance(60); while (state.warming);
        return say();
      }
      find('[data-do=run]').textContent = 'Pause';
      before = spoken = performance.now();
      frame = requestAnimationFrame(tick);
    },
    pause() {
      cancelAnimationFrame(frame);
      frame = 0;
      find('[data-do=run]').textContent = calm.matches ? 'Run 60 steps' : 'Run';
      say();
    },
    once() { if (frame) actions.pause(); advance(1); say(); },
    anew() { state = begin(data); curves = []; measure(); draw(); say(); },
    warmUp() { actions.anew(); state.warming = true; curves = []; measure(); draw(); if (!frame) actions.run(); },
  };

  function setRemedy(name) {
    options.remedy = options.remedy === name ? null : name; // one rule alone can say which codes start anew
    for (const one of all('[data-remedy]')) one.setAttribute('aria-pressed', one.dataset.remedy === options.remedy);
    say(options.remedy ? `${NAMES[name]} is on. ` : `${NAMES[name]} is off. `);
  }

  function setRule(rule) {
    options.rule = rule;
    all('[data-slider]').forEach(one => setSlider(one.dataset.slider));
  }

  function setSlider(name) {
    const {low, high, says} = SLIDERS[name], slider = find(`[data-slider=${name}]`);
    options[name] = low * (high / low) ** (slider.value / 100);
    const text = says(options[name], options.rule);
    find(`[data-says=${name}]`).textContent = text;
    slider.setAttribute('aria-valuetext', text);
    slider.disabled = name === 'follow' && options.rule === 'Lloyd';
  }

  function move(k, x, y) {
    [x, y].forEach((value, i) => { state.codes[2 * k + i] = Math.max(-reach, Math.min(reach, value)); });
    seen = state.warming ? null : figures(state, data);
    if (curves.length) curves[curves.length - 1] = seen;
    draw();
    clearTimeout(waiting);
    waiting = setTimeout(() => say(`${label(k)}. `), 400); // once the hand rests
  }

  function choose(k) {
    codes.forEach((one, i) => one.setAttribute('tabindex', i === k ? 0 : -1));
    codes[k].focus({preventScroll: true});
  }

  const listen = (target, kind, what) => target.addEventListener(kind, what, {signal: ended.signal});
  listen(root, 'click', ({target}) => {
    const button = target.closest('button');
    if (button?.dataset.do) actions[button.dataset.do]();
    if (button?.dataset.remedy) setRemedy(button.dataset.remedy);
  });
  for (const name of ['keydown', 'keyup', 'keypress']) listen(root, name, event => event.stopPropagation());
  for (const one of all('[data-slider]')) {
    const {low, high} = SLIDERS[one.dataset.slider];
    one.value = 100 * Math.log(data[one.dataset.slider] / low) / Math.log(high / low);
    listen(one, 'input', () => setSlider(one.dataset.slider));
  }
  for (const one of all('[type=radio]')) listen(one, 'change', () => setRule(one.value));
  const placeOf = event => { // in the plane
    const box = svg.getBoundingClientRect();
    return [2 * (event.clientX - box.left) / box.width - 1, 1 - 2 * (event.clientY - box.top) / box.height]
      .map(value => value * reach);
  };
  listen(svg, 'pointerdown', event => {
    if (!event.target.closest('.vqp-code')) return;
    const k = nearest(placeOf(event), state.codes).index[0]; // where codes overlap, the one that is meant
    event.preventDefault();
    choose(k);
    svg.setPointerCapture(event.pointerId);
    held = {code: k, place: state.codes.slice(2 * k, 2 * k + 2)};
  });
  listen(svg, 'pointermove', event => {
    if (!held) return;
    move(held.code, ...placeOf(event));
    held.place = state.codes.slice(2 * held.code, 2 * held.code + 2);
  });
  listen(svg, 'lostpointercapture', () => { held = null; });
  codes.forEach((one, k) => {
    listen(one, 'focus', () => { chosen = k; draw(); });
    listen(one, 'blur', () => { chosen = -1; draw(); });
    listen(one, 'keydown', event => {
      const [dx, dy] = ARROWS[event.key] ?? [0, 0];
      const next = {PageUp: k - 1, PageDown: k + 1, Home: 0, End: size - 1}[event.key];
      const far = reach * (event.shiftKey ? 0.2 : 0.02);
      if (dx || dy) move(k, state.codes[2 * k] + dx * far, state.codes[2 * k + 1] + dy * far);
      if (next !== undefined) choose((next + size) % size);
      if (dx || dy || next !== undefined) event.preventDefault();
    });
  });
  const resized = new ResizeObserver(draw);
  actions.anew();
  setRule(data.rule);
  if (calm.matches) find('[data-do=run]').textContent = 'Run 60 steps';
  resized.observe(root);
  return () => {
    cancelAnimationFrame(frame);
    clearTimeout(waiting);
    resized.disconnect();
    ended.abort();
    root.remove();
  };
}

export default {render: ({model, el}) => mount(el, model.get('plane'))};
