// The layer section of one run: overview chart, sortable table, and the chosen layer's tensors.

const nines = (cosine) => (isNumber(cosine) ? Math.max(1 - cosine, 0) : cosine);
const decibels = (value) => `${fixed(value, 1)} dB`;
const METRICS = {
  sqnr: {label: "SQNR", value: (l) => l.sqnr, text: decibels, note: "SQNR of each layer's output against float, dB. Higher is better."},
  cosine: {label: "cosine", value: (l) => nines(l.cosine), raw: (l) => l.cosine, text: (v) => fixed(v, 6), log: true,
           note: "1 − cosine of each layer's output against float, logarithmic. Lower is better."},
  isolated: {label: "isolated SQNR", value: (l) => l.isolated, text: decibels, note: "SQNR of the network's output when this layer alone is quantized, dB. Higher is better."},
  isolatedCosine: {label: "isolated cosine", value: (l) => nines(l.isolatedCosine), raw: (l) => l.isolatedCosine, text: (v) => fixed(v, 6), log: true,
                   note: "1 − cosine of the network's output when this layer alone is quantized, logarithmic. Lower is better."},
  sensitivity: {label: "sensitivity", value: (l) => l.sensitivity, text: percent, heat: true, axis: (v) => `${digits(100 * v, 3)} %`,
                note: "Share of all isolated noise power that this layer causes. Lower is better."},
};
const DESCENDING = new Set(["sensitivity", "parameters", "macs"]);

function metricText(layer, key) {
  const metric = METRICS[key];
  return written((metric.raw ?? metric.value)(layer), metric.text);
}

function layerText(layer, key) {
  const lines = [layer.name, `${layer.op}, ${layer.bits}`, `${METRICS[key].label}: ${metricText(layer, key)}`];
  for (const other of ["sqnr", "sensitivity"]) if (other !== key) lines.push(`${METRICS[other].label}: ${metricText(layer, other)}`);
  lines.push(`${short(layer.parameters)} parameters, ${short(layer.macs)} MACs`);
  return lines.join("\n");
}

// Heights of the overview: a linear axis from zero, or a logarithmic one over whole decades
function heights(layers, metric, plot) {
  const known = layers.map(metric.value).filter(isNumber);
  const y = (share) => plot.top + plot.height * (1 - share);
  if (metric.log) {
    const positive = known.filter((v) => v > 0).map(Math.log10);
    const low = Math.floor(Math.min(...positive, -1) - 0.2), high = Math.max(Math.ceil(Math.max(...positive, -8)), low + 1);
    const marks = [];
    for (let power = low; power <= high; power++) marks.push(10 ** power);
    const scale = (v) => y(v > 0 ? (Math.log10(v) - low) / (high - low) : 0);
    return {scale, base: y(0), marks, text: (v) => `1e${minus(String(Math.round(Math.log10(v))))}`};
  }
  const low = Math.min(0, ...known), high = Math.max(...known, low + 1e-9, 0);
  const marks = known.length ? ticks(low, high, 4) : [];
  const scale = (v) => y((v - low) / (high - low));
  return {scale, base: scale(0), marks, text: metric.axis ?? ((v) => digits(v, 3))};
}

function drawOverview(svg, layers, order, key, chosen, choose) {
  svg.replaceChildren();
  const metric = METRICS[key];
  const width = svg.clientWidth || 1100, height = svg.clientHeight || 210;
  const plot = {left: 46, top: 10, width: width - 50, height: height - 20};
  const {scale, base, marks, text} = heights(layers, metric, plot);
  rules(svg, marks, scale, plot, text);
  const pitch = plot.width / Math.max(order.length, 1);
  const thick = Math.min(26, pitch > 4 ? pitch - 2 : pitch * 0.8);
  order.forEach((index, place) => {
    const value = metric.value(layers[index]);
    const x = plot.left + place * pitch + (pitch - thick) / 2;
    if (!isNumber(value)) {
      const full = value === "∞";
      element(svg, "rect", {class: full ? "mark" : "mark missing", x, width: thick, y: full ? plot.top : base - 8, height: full ? base - plot.top : 8});
      return;
    }
    const top = Math.min(scale(value), base - (value >= 0 ? 1 : 0)), bottom = Math.max(scale(value), base);
    element(svg, "rect", {class: `mark${metric.heat ? " heat" : ""}${index === chosen ? " chosen" : ""}`,
                          x: x.toFixed(2), width: thick.toFixed(2), y: top.toFixed(2), height: Math.max(1, bottom - top).toFixed(2)});
  });
  if (order.length && !order.some((index) => metric.value(layers[index]) !== null)) {
    element(svg, "text", {x: plot.left + plot.width / 2, y: plot.top + plot.height / 2, "text-anchor": "middle"}, `not measured: ${metric.label}`);
  }
  element(svg, "line", {class: "axis", x1: plot.left, x2: plot.left + plot.width, y1: Math.round(base) + 0.5, y2: Math.round(base) + 0.5});
  return {...plot, count: order.length, start: Math.max(0, order.indexOf(chosen)),
          text: (i) => layerText(layers[order[i]], key), choose: (i) => choose(order[i])};
}

function compared(layers, key, down) {
  const value = (i) => (key === "order" ? i : layers[i][key]);
  const rank = (v) => (v === "∞" ? Infinity : v === "−∞" ? -Infinity : v);
  return (a, b) => {
    const [x, y] = [rank(value(a)), rank(value(b))];
    const missing = (v) => v === null || v === "NaN";
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b; // what was not measured comes last
    const found = typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x < y ? -1 : x > y ? 1 : 0;
    return (down ? -found : found) || a - b;
  };
}

function layerSection(section, layers) {
  const part = (selector) => section.querySelector(selector);
  const svg = part(".overview"), body = part(".layer-table tbody");
  const rows = [...body.rows];
  const state = {metric: "sqnr", sort: "order", down: false, order: layers.map((_, i) => i), chosen: 0, log: false, plot: null};
  const detail = detailOf(part(".detail"));

  const draw = () => { state.plot = drawOverview(svg, layers, state.order, state.metric, state.chosen, (i) => choose(i, true)); };
  const choose = (index, moved) => {
    rows[state.chosen].classList.remove("chosen");
    rows[state.chosen].querySelector(".pick").removeAttribute("aria-current");
    state.chosen = index;
    rows[index].classList.add("chosen");
    rows[index].querySelector(".pick").setAttribute("aria-current", "true");
    const place = state.order.indexOf(index);
    detail.show(layers[index], place, state.order.length);
    draw();
    if (!moved) return;
    const box = part(".rows"), row = rows[index];
    if (place >= 0) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  };
  const step = (by) => choose(state.order[Math.min(Math.max(state.order.indexOf(state.chosen) + by, 0), state.order.length - 1)], true);
  const arrange = () => {
    const wanted = part(".filter").value.trim().toLowerCase();
    const all = layers.map((_, i) => i).sort(compared(layers, state.sort, state.down));
    state.order = all.filter((i) => `${layers[i].name} ${layers[i].op}`.toLowerCase().includes(wanted));
    const shown = new Set(state.order);
    body.append(...all.map((i) => rows[i]));
    rows.forEach((row, i) => { row.hidden = !shown.has(i); });
    part(".shown").textContent = wanted ? `${shown.size} of ${layers.length} layers` : `${layers.length} layers`;
    for (const head of section.querySelectorAll("th[data-sort]")) {
      if (head.dataset.sort === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    detail.place(state.order.indexOf(state.chosen), state.order.length);
    draw();
  };
  const sortBy = (key, down) => {
    Object.assign(state, {sort: key, down});
    const pick = part(".sort");
    pick.value = [...pick.options].some((o) => o.value === key) && down === DESCENDING.has(key) ? key : "";
    arrange();
  };

  for (const head of section.querySelectorAll("th[data-sort]")) {
    const key = head.dataset.sort;
    buttonIn(head, "sort-head").addEventListener("click", () => sortBy(key, state.sort === key ? !state.down : DESCENDING.has(key)));
  }
  rows.forEach((row, i) => {
    buttonIn(row.querySelector("th.name"), "pick");
    row.addEventListener("click", () => choose(i, false));
  });
  part(".metric").addEventListener("change", (event) => {
    state.metric = event.target.value;
    part(".metric-note").textContent = METRICS[state.metric].note;
    draw();
  });
  part(".sort").addEventListener("change", (event) => sortBy(event.target.value, DESCENDING.has(event.target.value)));
  part(".filter").addEventListener("input", arrange);
  part(".previous").addEventListener("click", () => step(-1));
  part(".next").addEventListener("click", () => step(1));
  part(".metric-note").textContent = METRICS[state.metric].note;
  readable(svg, () => state.plot);
  new ResizeObserver(draw).observe(svg);
  arrange();
  choose(0, false);
}

// Turn a cell's text into a button, so that the keyboard reaches it
function buttonIn(cell, className) {
  const button = document.createElement("button");
  Object.assign(button, {type: "button", className, textContent: cell.textContent});
  cell.replaceChildren(button);
  return button;
}

// The panel of the chosen layer
function detailOf(box) {
  const part = (selector) => box.querySelector(selector);
  let log = true, charts = [];
  const draw = () => charts.forEach((chart) => { chart.plot = drawHistogram(chart.svg, chart.tensor, log); });
  const resized = new ResizeObserver(draw);
  const scaleTo = (value) => {
    log = value;
    part(".linear").setAttribute("aria-pressed", String(!log));
    part(".log").setAttribute("aria-pressed", String(log));
    draw();
  };
  part(".linear").addEventListener("click", () => scaleTo(false));
  part(".log").addEventListener("click", () => scaleTo(true));
  const place = (at, count) => {
    part(".previous").disabled = at <= 0;
    part(".next").disabled = at < 0 ? count === 0 : at >= count - 1;
  };
  const show = (layer, at, count) => {
    part("h3").textContent = layer.name;
    const facts = [["Op", layer.op], ["Bits", layer.bits], ["Parameters", whole(layer.parameters)], ["MACs", whole(layer.macs)]];
    for (const key of Object.keys(METRICS)) facts.push([METRICS[key].label.replace(/^./, (c) => c.toUpperCase()), metricText(layer, key)]);
    addFacts(part(".detail-facts"), facts);
    resized.disconnect();
    const list = part(".tensors");
    list.replaceChildren();
    charts = [];
    if (!layer.tensors.length) element(list, "p", {class: "none"}, "not measured: no tensor of this layer was recorded");
    for (const tensor of layer.tensors) charts.push(...tensorCard(list, tensor));
    charts.forEach((chart) => { readable(chart.svg, () => chart.plot); resized.observe(chart.svg); });
    draw();
    place(at, count);
  };
  return {show, place};
}

// The card of one tensor; returns its chart, or nothing where no histogram was kept
function tensorCard(list, tensor) {
  const card = element(list, "div", {class: "tensor"});
  const head = element(card, "h4", {}, tensor.role === "weight" ? "Weight" : "Activation");
  element(head, "small", {class: "name"}, tensor.name);
  element(head, "small", {}, tensor.scheme.includes(tensor.bits) ? tensor.scheme : `${tensor.bits} bits, ${tensor.scheme}`);
  let chart = [];
  if (tensor.histogram) {
    const svg = document.querySelector("svg").cloneNode(false);
    for (const name of svg.getAttributeNames()) svg.removeAttribute(name);
    const label = `Histogram of ${tensor.name}: arrow keys move from bin to bin`;
    for (const [key, value] of Object.entries({role: "slider", tabindex: "0", "aria-label": label})) svg.setAttribute(key, value);
    card.append(svg);
    chart = [{svg, tensor, plot: null}];
  } else element(card, "p", {class: "none"}, "not measured: no histogram was kept for this tensor");
  tensorFacts(element(card, "dl"), tensor);
  return chart;
}
