// Small drawing tools: SVG elements, axes, number texts, and one cursor that mouse, finger and keyboard move.

function element(parent, tag, attributes = {}, text = "") {
  const child = document.createElementNS(parent.namespaceURI, tag);
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== "") child.textContent = text;
  parent.append(child);
  return child;
}

const minus = (text) => text.replace("-", "−");
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// null is not measured; text stands for what JSON cannot hold (∞, NaN)
function written(value, format) {
  if (value === null || value === undefined) return "not measured";
  return isNumber(value) ? format(value) : String(value);
}

const digits = (value, count = 4) => minus(String(Number(value.toPrecision(count))));
const fixed = (value, decimals) => minus(value.toFixed(decimals));
const whole = (value) => value.toLocaleString("en-US");

function percent(share) {
  if (share > 0 && share < 0.00005) return "< 0.01 %";
  return `${(100 * share).toFixed(2)} %`;
}

function short(value) {
  for (const [power, prefix] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= power) return `${Number((value / power).toPrecision(3))}${prefix}`;
  }
  return digits(value, 3);
}

// Round positions 1, 2, 2.5, 5 × 10^n, about `wanted` of them
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= raw) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x - box.width / 2), document.documentElement.clientWidth - box.width - 8);
  const top = y - box.height - 12 < 8 ? y + 18 : y - box.height - 12;
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

const hideTip = () => { tip.hidden = true; };

// Let a chart of `count` columns be read one column at a time. `plot` = {left, top, width, height, count, text(i),
// choose(i) or null, start}; it is looked up afresh at every event, because a redraw replaces it.
function readable(svg, plotOf) {
  let at = -1;
  const go = (index) => {
    const plot = plotOf();
    if (!plot || plot.count === 0) return;
    at = Math.min(Math.max(index, 0), plot.count - 1);
    const pitch = plot.width / plot.count;
    svg.querySelector(".hover")?.remove();
    element(svg, "rect", {class: "hover", x: plot.left + at * pitch - Math.max(0, (3 - pitch) / 2), y: plot.top,
                          width: Math.max(pitch, 3), height: plot.height});
    const box = svg.getBoundingClientRect();
    showTip(plot.text(at), box.left + plot.left + (at + 0.5) * pitch, box.top + plot.top);
    svg.setAttribute("aria-valuemin", "1");
    svg.setAttribute("aria-valuemax", String(plot.count));
    svg.setAttribute("aria-valuenow", String(at + 1));
    svg.setAttribute("aria-valuetext", plot.text(at).replaceAll("\n", ", "));
  };
  const leave = () => { svg.querySelector(".hover")?.remove(); hideTip(); };
  const under = (event) => {
    const plot = plotOf();
    return Math.floor((event.clientX - svg.getBoundingClientRect().left - plot.left) / plot.width * plot.count);
  };
  svg.addEventListener("pointermove", (event) => plotOf() && go(under(event)));
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("click", (event) => { if (plotOf()) { go(under(event)); plotOf().choose?.(at); } });
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) go(plotOf()?.start ?? 0); });
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const far = Math.max(2, Math.round((plotOf()?.count ?? 0) / 10));
    const moves = {ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + far,
                   PageDown: at - far, Home: 0, End: Infinity};
    if (event.key in moves) go(moves[event.key]);
    else if ((event.key === "Enter" || event.key === " ") && at >= 0) plotOf()?.choose?.(at);
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  });
}

// Horizontal lines with their labels; `y` gives the height of a value
function rules(svg, values, y, plot, label) {
  for (const value of values) {
    const height = Math.round(y(value)) + 0.5;
    element(svg, "line", {class: "grid", x1: plot.left, x2: plot.left + plot.width, y1: height, y2: height});
    element(svg, "text", {x: plot.left - 6, y: height + 4, "text-anchor": "end"}, label(value));
  }
}
