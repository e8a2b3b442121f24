"use strict";

// A page without a time zone is loaded again with the time zone of the browser.
const pageUrl = new URL(location.href);
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone && zone !== "UTC" && !pageUrl.searchParams.has("tz")) {
  pageUrl.searchParams.set("tz", zone);
  location.replace(pageUrl);
}

const form = document.getElementById("filters");
let selectedTimes = {};
form?.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of Object.entries(selectedTimes)) formData.set(name, value);
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  selectedTimes = {};
});

function selectTimes(from, to) {
  const minute = 60;
  const isoTime = (seconds) => new Date(seconds * 1000).toISOString();
  selectedTimes = {
    since: isoTime(Math.floor(from / minute) * minute),
    until: isoTime(Math.ceil(to / minute) * minute),
  };
  form.requestSubmit();
}

// The chart draws the numbers of the table.
const plot = document.getElementById("plot");
const rows = [...document.querySelectorAll("#counts tbody tr")];
const columnHeads = [...document.querySelectorAll("#counts th[data-relation]")];
let chart = null;

function draw() {
  const starts = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
  const counts = columnHeads.map((_, index) => rows.map((row) => Number(row.cells[index + 1].textContent)));
  // The bars are stacked: the first series is the sum of all, and the next ones are drawn over it.
  const stacked = counts.map((_, first) =>
    starts.map((_, row) => counts.slice(first).reduce((sum, numbers) => sum + numbers[row], 0)),
  );
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const timeInZone = (seconds) => uPlot.tzDate(new Date(seconds * 1000), plot.dataset.zone);
  const [month, date, hour] = ["{YYYY}-{MM}", "{MM}-{DD}", "{HH}:{mm}"].map((format) => uPlot.fmtDate(format));
  const label = (seconds, step) => {
    const time = timeInZone(seconds);
    if (step >= 28 * 86400) return month(time);
    return step < 86400 && hour(time) !== "00:00" ? hour(time) : date(time);
  };
  const axis = { stroke: color("--bs-body-color"), grid: { stroke: color("--bs-border-color"), width: 1 } };
  const bucketSeconds = starts.length > 1 ? starts.at(-1) - starts.at(-2) : 3600;
  const steps = [];
  for (let step = 1; step < 1e12; step *= 10) steps.push(step, 2 * step, 5 * step);
  chart?.destroy();
  chart = new uPlot(
    {
      width: plot.clientWidth,
      height: 220,
      tzDate: timeInZone,
      scales: {
        x: { range: () => [starts[0], starts.at(-1) + bucketSeconds] },
        y: { range: (_, minimum, maximum) => [0, Math.max(1, maximum) * 1.05] },
      },
      axes: [
        { ...axis, values: (_, splits, __, ___, step) => splits.map((seconds) => label(seconds, step)) },
        { ...axis, incrs: steps },
      ],
      cursor: { y: false, points: { show: false }, drag: { setScale: false } },
      series: [
        { label: document.querySelector("#counts th").textContent, value: "{YYYY}-{MM}-{DD} {HH}:{mm}" },
        ...columnHeads.map((head, index) => ({
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
            if (width > 4) selectTimes(self.posToVal(left, "x"), self.posToVal(left + width, "x"));
          },
        ],
      },
    },
    [starts, ...stacked],
    plot,
  );
}

if (plot && window.uPlot) {
  plot.hidden = document.getElementById("plot-hint").hidden = false;
  draw();
  new ResizeObserver(() => {
    if (chart.width !== plot.clientWidth) chart.setSize({ width: plot.clientWidth, height: 220 });
  }).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
