// One tensor: its histogram with the clipping range, and the numbers of its format.

function histogramSpan(tensor) {
  const ends = [tensor.histogram.low, tensor.histogram.high, ...tensor.clip].filter(isNumber);
  const low = Math.min(...ends), high = Math.max(...ends);
  const margin = (high - low || Math.abs(high) || 1) * 0.03;
  return [low - margin, high + margin];
}

// Draws into `svg` and returns what `readable` needs
function drawHistogram(svg, tensor, logarithmic) {
  svg.replaceChildren();
  const {counts, low, high} = tensor.histogram;
  const width = svg.clientWidth || 460, height = svg.clientHeight || 220;
  const plot = {left: 46, top: 22, width: width - 56, height: height - 50};
  const [first, last] = histogramSpan(tensor);
  const x = (value) => plot.left + (value - first) / (last - first) * plot.width;
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const lift = logarithmic ? (c) => Math.log10(c / 0.5) / Math.log10(most / 0.5) : (c) => c / most;
  const y = (c) => plot.top + plot.height * (1 - (c > 0 ? lift(c) : 0));
  const decades = [];
  for (let c = 1; c <= most; c *= 10) decades.push(c);
  const thin = Math.ceil(decades.length / 5);
  rules(svg, logarithmic ? decades.filter((_, i) => i % thin === 0) : ticks(0, most, 4).filter((t) => t > 0), y, plot, short);
  drawClip(svg, tensor, x, plot);
  const step = (high - low) / counts.length || (last - first) / 50; // a constant tensor has no width of its own
  let path = "";
  counts.forEach((c, i) => {
    if (c > 0) path += `M${x(low + i * step).toFixed(2)} ${plot.top + plot.height}V${y(c).toFixed(2)}H${Math.max(x(low + (i + 1) * step), x(low + i * step) + 1).toFixed(2)}V${plot.top + plot.height}Z`;
  });
  element(svg, "path", {class: "mark", d: path});
  drawFoot(svg, tensor, x, plot, ticks(first, last, width < 380 ? 4 : 6));
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  return {
    left: x(low), top: plot.top, width: x(low + step * counts.length) - x(low), height: plot.height, count: counts.length,
    start: counts.indexOf(most), choose: null,
    text: (i) => `${digits(low + i * step)} to ${digits(low + (i + 1) * step)}\n${whole(counts[i])} values, ${percent(counts[i] / total)}`,
  };
}

function drawClip(svg, tensor, x, plot) {
  const [low, high] = tensor.clip;
  const right = plot.left + plot.width, above = plot.top - 9;
  const outside = [[low, plot.left, x(low)], [high, x(high), right]].filter(([value]) => isNumber(value));
  for (const [value, from, to] of outside) {
    element(svg, "rect", {class: "outside", x: from, y: plot.top, width: Math.max(0, to - from), height: plot.height});
    element(svg, "line", {class: "clip", x1: x(value), x2: x(value), y1: plot.top - 4, y2: plot.top + plot.height});
  }
  if (outside.length === 2 && x(high) - x(low) < 110) { // two texts would touch: one for both
    const middle = Math.min(Math.max((x(low) + x(high)) / 2, plot.left + 50), right - 50);
    element(svg, "text", {class: "clip-text", x: middle, y: above, "text-anchor": "middle"}, `${digits(low, 3)} … ${digits(high, 3)}`);
    return;
  }
  for (const [value] of outside) {
    element(svg, "text", {class: "clip-text", x: x(value), y: above, "text-anchor": value === low ? "start" : "end"}, digits(value, 3));
  }
}

function drawFoot(svg, tensor, x, plot, at) {
  const foot = plot.top + plot.height + 0.5;
  element(svg, "line", {class: "axis", x1: plot.left, x2: plot.left + plot.width, y1: foot, y2: foot});
  if (x(0) >= plot.left && x(0) <= plot.left + plot.width) {
    element(svg, "line", {class: "zero", x1: x(0), x2: x(0), y1: plot.top, y2: foot});
  }
  for (const value of at) {
    element(svg, "line", {class: "axis", x1: x(value), x2: x(value), y1: foot, y2: foot + 4});
    element(svg, "text", {x: x(value), y: foot + 18, "text-anchor": "middle"}, digits(value, 3));
  }
}

function spread(values, format) {
  if (values === null) return "not recorded";
  if (values.count === 1 || values.low === values.high) {
    return written(values.low, format) + (values.count > 1 ? ` (all ${whole(values.count)})` : "");
  }
  return `${written(values.low, format)} to ${written(values.high, format)}, median ${written(values.median, format)} (${whole(values.count)})`;
}

function tensorFacts(list, tensor) {
  const channels = (tensor.scale?.count ?? 1) > 1;
  const [low, high] = tensor.integers;
  const facts = [
    ["Integers", `${minus(String(low))} … ${minus(String(high))}`],
    ["Levels", whole(high - low + 1)],
    [channels ? "Widest range" : "Range", `${written(tensor.clip[0], digits)} … ${written(tensor.clip[1], digits)}`],
    ["Outside the range", written(tensor.clipped, percent)],
    [channels ? "Scales" : "Scale", spread(tensor.scale, digits)],
    [(tensor.zeroPoint?.count ?? 1) > 1 ? "Zero points" : "Zero point", spread(tensor.zeroPoint, (v) => digits(v, 6))],
  ];
  if (tensor.histogram) {
    facts.push(["Values seen", `${written(tensor.histogram.range[0], digits)} … ${written(tensor.histogram.range[1], digits)}`]);
    facts.push(["Count", whole(tensor.histogram.counts.reduce((a, b) => a + b, 0))]);
  }
  addFacts(list, facts);
}

function addFacts(list, facts) {
  list.replaceChildren();
  for (const [term, text] of facts) {
    const pair = element(list, "div");
    element(pair, "dt", {}, term);
    element(pair, "dd", {}, text);
  }
}
