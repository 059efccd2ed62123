"use strict";
// Reads values out under the pointer, in every chart at once; a page of a run that goes on looks again.
const charts = JSON.parse(document.getElementById("values").textContent);
const plots = [...document.querySelectorAll(".plot")];

function figure(value) {
  const size = Math.abs(value);
  if (value === null) return "–";
  if (value === 0) return "0";
  if (size < 0.01 || size >= 1e7) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en-GB") : value.toPrecision(4);
}

// The index of the value at a step, or of the next one before it.
function indexAt(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

function said(lines, step) {
  const parts = [];
  let at = "";
  for (const line of lines) {
    if (!line.steps.length) continue;
    const i = indexAt(line.steps, step), own = line.steps[i].toLocaleString("en-GB");
    const where = (line.means ? "steps to " : "step ") + own;
    parts.push((where === at ? "" : (at ? "; " : "") + where + ": ") + line.name + " " + figure(line.values[i]));
    at = where;
  }
  return parts.join(" · ").replaceAll(" · ; ", "; ");
}

function show(step) {
  for (const plot of plots) {
    const { first, last } = plot.dataset, cursor = plot.querySelector(".cursor");
    const readout = plot.closest("figure").querySelector(".readout");
    cursor.hidden = step === null;
    if (step === null) { readout.textContent = readout.dataset.latest; continue; }
    cursor.style.left = 100 * (step - first) / (last - first) + "%";
    readout.textContent = said(charts[plot.closest("figure").id] || [], step);
  }
}

for (const plot of plots) {
  const move = (event) => {
    const box = plot.getBoundingClientRect(), first = +plot.dataset.first, last = +plot.dataset.last;
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    show(Math.round(first + share * (last - first)));
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", () => show(null));
}

// Not while something is read closely.
if ("running" in document.body.dataset) {
  setInterval(() => {
    const busy = document.hidden || document.querySelector("details[open], .plot:hover") || String(getSelection());
    if (!busy) location.reload();
  }, 10000);
}
