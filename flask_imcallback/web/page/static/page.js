"use strict";

// Whoever comes without a time zone gets the browser's.
const here = new URL(location.href);
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone && zone !== "UTC" && !here.searchParams.has("tz")) {
  here.searchParams.set("tz", zone);
  location.replace(here);
}

const form = document.getElementById("filters");
let chosen = {};
form?.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of Object.entries(chosen)) formData.set(name, value);
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  chosen = {};
});

function choose(from, to) {
  const minute = 60;
  const text = (seconds) => new Date(seconds * 1000).toISOString();
  chosen = {
    since: text(Math.floor(from / minute) * minute),
    until: text(Math.ceil(to / minute) * minute),
  };
  form.requestSubmit();
}

// The plot has the numbers of the table.
const plot = document.getElementById("plot");
const rows = [...document.querySelectorAll("#counts tbody tr")];
const heads = [...document.querySelectorAll("#counts th[data-relation]")];
let drawn = null;

function draw() {
  const begins = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
  const counts = heads.map((_, index) => rows.map((row) => Number(row.cells[index + 1].textContent)));
  // Each stands on those behind it, so that the first is as high as all together.
  const stacked = counts.map((_, first) =>
    begins.map((_, at) => counts.slice(first).reduce((sum, numbers) => sum + numbers[at], 0)),
  );
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const at = (seconds) => uPlot.tzDate(new Date(seconds * 1000), plot.dataset.zone);
  const [month, date, hour] = ["{YYYY}-{MM}", "{MM}-{DD}", "{HH}:{mm}"].map((format) => uPlot.fmtDate(format));
  const label = (seconds, step) => {
    const time = at(seconds);
    if (step >= 28 * 86400) return month(time);
    return step < 86400 && hour(time) !== "00:00" ? hour(time) : date(time);
  };
  const axis = { stroke: color("--bs-body-color"), grid: { stroke: color("--bs-border-color"), width: 1 } };
  const length = begins.length > 1 ? begins.at(-1) - begins.at(-2) : 3600;
  const steps = [];
  for (let step = 1; step < 1e12; step *= 10) steps.push(step, 2 * step, 5 * step);
  drawn?.destroy();
  drawn = new uPlot(
    {
      width: plot.clientWidth,
      height: 220,
      tzDate: at,
      scales: {
        x: { range: () => [begins[0], begins.at(-1) + length] },
        y: { range: (_, least, most) => [0, Math.max(1, most) * 1.05] },
      },
      axes: [
        { ...axis, values: (_, splits, __, ___, step) => splits.map((seconds) => label(seconds, step)) },
        { ...axis, incrs: steps },
      ],
      cursor: { y: false, points: { show: false }, drag: { setScale: false } },
      series: [
        { label: document.querySelector("#counts th").textContent, value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
        ...heads.map((head, index) => ({
          label: head.textContent,
          fill: color(`--im-${head.dataset.relation}`),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.9, 100], align: 1 }),
          value: (_, __, ___, row) => (row === null ? "–" : counts[index][row]),
        })),
      ],
      hooks: {
        setSelect: [
          (self) => {
            const { left, width } = self.select;
            if (width > 4) choose(self.posToVal(left, "x"), self.posToVal(left + width, "x"));
          },
        ],
      },
    },
    [begins, ...stacked],
    plot,
  );
}

if (plot && window.uPlot) {
  plot.hidden = document.getElementById("plot-hint").hidden = false;
  draw();
  new ResizeObserver(() => {
    if (drawn.width !== plot.clientWidth) drawn.setSize({ width: plot.clientWidth, height: 220 });
  }).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
