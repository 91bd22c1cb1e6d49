"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-left", "pentagon", "triangle-right", "star", "diamond-tall", "hexagon", "octagon"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const byId = (id) => document.getElementById(id);
  const element = (name, text, kind) => { const made = document.createElement(name); if (text !== undefined) made.textContent = text; if (kind) made.className = kind; return made; };
  const number = (value) => value === 0 ? "0" : Math.abs(value) >= 999.5 ? value.toFixed(0) : value.toPrecision(3);
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const several = data.runs.length > 1;

  const groups = data.runs.flatMap((run) => run.groups.map((group) => ({ run: run.name, ...group })));
  const models = [...new Set(groups.flatMap((group) => group.cells.map((cell) => cell.model)))];
  const names = Object.keys(data.metrics);
  const hidden = new Set();
  let listening = false;

  function writeWords() {
    byId("subtitle").textContent = data.runs.map((run) => run.name + (run.created ? ` (${run.created})` : "")).join(" · ");
    for (const run of data.runs) {
      if (several) byId("words").append(element("h3", run.name));
      if (run.claim) {
        const claim = element("p", `Claim under test: ${run.claim}.`, "quiet"), link = element("a", "Growth");
        link.href = "#growth";
        if (run.exponents.some((row) => row.exponent !== null)) claim.append(" How cost grows is under ", link, ".");
        byId("words").append(claim);
      }
      if (run.unreadable) byId("words").append(element("p", run.unreadable === 1 ? "1 line of this run is not a record and is left out." : `${run.unreadable} lines of this run are not records and are left out.`, "quiet"));
      for (const [conditions, sentences] of run.summary) {
        byId("words").append(element("p", conditions, "tick"));
        const list = element("ul");
        for (const sentence of sentences) list.append(element("li", sentence));
        byId("words").append(list);
      }
    }
    for (const run of data.runs) {
      const list = element("dl");
      const facts = [["run", run.name], ["created", run.created], ["command", run.command], ["commit", run.commit], ["code", run.code], ...run.machine];
      for (const [key, value] of facts) if (value) list.append(element("dt", key), element("dd", value));
      byId("runs").append(list);
    }
    for (const line of data.method) byId("method").append(element("li", line));
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const theme = document.documentElement.dataset.theme;
    return { ink: read("--ink"), quiet: read("--quiet"), paper: read("--paper"), line: read("--line"), lines: data.colours[theme] };
  }

  // One model's line in the chosen view. Points are [side, value, low, high, cell]; a view divides them by something.
  function curveOf(group, model, name, view, reference) {
    const factor = view === "ratio" ? 1 : data.metrics[name].factor;
    const cells = group.cells.filter((cell) => cell.model === model);
    const points = cells.filter((cell) => cell.values[name]).flatMap((cell) => {
      const base = view === "ratio" ? group.cells.find((other) => other.model === reference && other.size === cell.size) : null;
      if (view === "ratio" && !(base && base.values[name] && base.values[name][0] > 0)) return [];
      let [value, low, high] = cell.values[name];
      if (view === "ratio") {
        const [middle, below, above] = base.values[name], own = model === reference;
        const known = low !== null && high !== null && below !== null && above !== null && low > 0 && below > 0;
        // The interval of a ratio, put together in logarithms (MOVER).
        const down = known && !own ? Math.hypot(Math.log(value / low), Math.log(above / middle)) : 0;
        const up = known && !own ? Math.hypot(Math.log(high / value), Math.log(middle / below)) : 0;
        value /= middle;
        [low, high] = known || own ? [value * Math.exp(-down), value * Math.exp(up)] : [null, null];
      }
      const by = factor * (view === "pixel" ? cell.pixels / 1e6 : 1);
      return [[Math.sqrt(cell.pixels), value / by, low === null ? null : low / by, high === null ? null : high / by, cell]];
    });
    const failed = points.length ? cells.filter((cell) => cell.status !== "ok" && !cell.values[name]).map((cell) => [Math.sqrt(cell.pixels), cell]) : [];
    return { model, points, crosses: failed.map(([side, cell]) => [side, heightAt(points, side, data.metrics[name].from_weights && view === "value"), cell]).filter((cross) => cross[1] !== null) };
  }

  // Height on the line through the neighbours, or through the last two points, which is straight in logarithms or, from
  // the weights up, in pixels; none before the first point.
  function heightAt(points, side, fromWeights) {
    if (side < points[0][0] || points.length < 2) return side < points[0][0] ? null : points[0][1];
    const at = points.findIndex((point) => point[0] > side), right = at < 0 ? points.length - 1 : at;
    const [[x0, y0], [x1, y1]] = [points[right - 1], points[right]];
    if (fromWeights && x1 > x0 && y1 >= y0) return y0 + (y1 - y0) * (side ** 2 - x0 ** 2) / (x1 ** 2 - x0 ** 2);
    return x0 === x1 || y0 <= 0 || y1 <= 0 ? y1 : y0 * Math.exp(Math.log(y1 / y0) / Math.log(x1 / x0) * Math.log(side / x0));
  }

  function traces(curves, name, palette, unit, labelled) {
    const metric = data.metrics[name];
    return curves.flatMap(({ model, points, crosses }) => {
      const [place, dashes, symbol] = data.looks[model], colour = palette.lines[place], visible = hidden.has(model) ? "legendonly" : true;
      const hollow = ([, , low, , cell]) => metric.timed && (low === null || cell.disturbed);
      const shared = { type: "scatter", legendgroup: model, visible };
      return [{
        ...shared, mode: "lines+markers", name: escaped(model), showlegend: !labelled, x: points.map((p) => p[0]), y: points.map((p) => p[1]),
        error_y: points.some((p) => p[4].seeds[name]) ? undefined : { type: "data", symmetric: false, thickness: 1, width: 3, color: colour,
          array: points.map((p) => p[3] === null ? 0 : p[3] - p[1]), arrayminus: points.map((p) => p[2] === null ? 0 : p[1] - p[2]) },
        text: points.map((p) => escaped(`${p[4].size}: ${number(p[1])} ${unit}` + (p[2] === null || p[3] === null ? "" : ` (${number(p[2])} to ${number(p[3])})`) + (p[4].disturbed ? ", disturbed" : ""))),
        hovertemplate: "%{fullData.name}<br>%{text}<extra></extra>",
        line: { color: colour, width: 2, dash: DASHES[dashes] },
        marker: { color: points.map((p) => hollow(p) ? palette.paper : colour), size: 8, symbol: SYMBOLS[symbol], line: { color: points.map((p) => hollow(p) ? colour : palette.paper), width: points.map((p) => hollow(p) ? 1.8 : 1) } },
      }, {
        ...shared, mode: "markers", name: escaped(model), showlegend: false, x: crosses.map((c) => c[0]), y: crosses.map((c) => c[1]),
        text: crosses.map((c) => escaped(`${c[2].size}: ${c[2].status}${c[2].reason ? `, ${c[2].reason.slice(0, 120)}` : ""}`)),
        hovertemplate: "%{fullData.name}<br>%{text}<extra></extra>",
        marker: { color: colour, size: 9, symbol: "x-thin", line: { color: colour, width: 2.5 } },
      }, {
        ...shared, mode: "markers", showlegend: false, hoverinfo: "skip",
        x: points.flatMap((p) => (p[4].seeds[name] || []).map(() => p[0])),
        y: points.flatMap((p) => (p[4].seeds[name] || []).map((value) => value / metric.factor)),
        marker: { color: colour, size: 4, symbol: SYMBOLS[symbol], opacity: 0.7 },
      }];
    });
  }

  // Names at the ends of the lines, moved apart; the axis decides their heights, so it is fixed first.
  function labels(curves, palette, range, logarithmic) {
    const share = (value) => ((logarithmic ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);
    const ends = curves.map((curve) => ({ model: curve.model, y: share(curve.points[curve.points.length - 1][1]) })).sort((a, b) => a.y - b.y);
    const gap = Math.min(18 / 430, 1 / Math.max(1, ends.length - 1));
    ends.forEach((end, i) => { end.at = Math.max(Math.min(Math.max(end.y, 0), 1), i ? ends[i - 1].at + gap : 0); });
    for (let i = ends.length - 1, top = 1; i >= 0; top = ends[i].at - gap, i -= 1) ends[i].at = Math.min(ends[i].at, top);
    return ends.map(({ model, at }) => ({
      text: escaped(model), name: model, xref: "paper", yref: "paper", x: 1.01, y: at, xanchor: "left", yanchor: "middle", showarrow: false, captureevents: true,
      opacity: hidden.has(model) ? 0.35 : 1, font: { color: palette.lines[data.looks[model][0]], size: 12.5 },
    }));
  }

  // The range that shows all values; of ratios only what is within a factor of three.
  function rangeOf(curves, view, logarithmic, metric) {
    const values = curves.filter((curve) => !hidden.has(curve.model)).flatMap((curve) => [...curve.points.flatMap((p) => [p[1], p[2], p[3]]), ...curve.crosses.map((c) => c[1])]);
    const usable = values.filter((value) => value !== null && (!logarithmic || value > 0) && (view !== "ratio" || (value >= 1 / 3 && value <= 3)));
    if (!usable.length) return [0, 1];
    const [low, high] = [Math.min(...usable), Math.max(...usable)].map((value) => logarithmic ? Math.log10(value) : value);
    const pad = 0.06 * (high - low) || 0.1;
    if (metric.share && view === "value") return [0, Math.min(1 / metric.factor, high + pad)];
    return [logarithmic ? low - pad : 0, high + pad];
  }

  // Round values on a logarithmic axis: the more decades, the fewer of each.
  function logTicks([low, high]) {
    const steps = [[1], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]][high - low > 4 ? 0 : high - low > 1.2 ? 1 : high - low > 0.5 ? 2 : 3];
    const decades = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
    const tickvals = decades.flatMap((decade) => steps.map((step) => step * 10 ** decade)).filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
    return { tickvals, ticktext: tickvals.map((value) => String(Number(value.toPrecision(3)))) };
  }

  function draw() {
    const group = groups[Number(byId("conditions").value)], name = byId("metric").value, view = byId("view").value;
    if (!group || !name) { byId("plot").textContent = "Nothing was measured that could be drawn."; return; }
    const metric = data.metrics[name], palette = colours(), narrow = window.innerWidth < 700, reference = byId("reference").value;
    const logarithmic = byId("logy").checked && !metric.share;
    byId("logy").disabled = metric.share;
    byId("against").hidden = view !== "ratio";
    const curves = models.map((model) => curveOf(group, model, name, view, reference)).filter((curve) => curve.points.length);
    const sizes = [...new Map(group.cells.map((cell) => [Math.sqrt(cell.pixels), cell.size])).entries()].sort((a, b) => a[0] - b[0]);
    const axis = { color: palette.quiet, gridcolor: palette.line, linecolor: palette.line, zeroline: false, ticks: "outside", tickcolor: palette.line };
    const unit = view === "ratio" ? "×" : metric.unit + (view === "pixel" ? " / Mpx" : "");
    const title = view === "ratio" ? `${metric.label} / that of ${escaped(reference)}` : `${metric.label}${view === "pixel" ? " per million pixels" : ""}${unit ? `, ${unit}` : ""}`;
    const range = rangeOf(curves, view, logarithmic, metric);
    const widest = Math.max(0, ...curves.map((curve) => curve.model.length));
    const layout = {
      paper_bgcolor: palette.paper, plot_bgcolor: palette.paper, font: { color: palette.ink, size: 13, family: "system-ui, sans-serif" },
      margin: { l: 64, r: narrow ? 12 : Math.min(340, 20 + 7.2 * widest), t: 34, b: 56 }, hovermode: "closest", hoverlabel: { bgcolor: palette.paper, bordercolor: palette.line, font: { color: palette.ink } },
      legend: { orientation: "h", y: -0.2, font: { size: 11.5 } },
      annotations: narrow ? [] : labels(curves, palette, range, logarithmic),
      xaxis: { ...axis, title: { text: "image side, pixels" }, type: byId("logx").checked ? "log" : "linear", tickmode: "array", tickvals: sizes.map((s) => s[0]), ticktext: sizes.map((s) => escaped(s[1])), tickangle: narrow || sizes.length > 9 ? -45 : 0 },
      yaxis: { ...axis, title: { text: title, standoff: 14 }, automargin: true, type: logarithmic ? "log" : "linear", range, ...(logarithmic ? { tickmode: "array", ...logTicks(range) } : {}) },
    };
    byId("metric-what").textContent = `${metric.what}; ${metric.higher ? "higher" : "lower"} is better`;
    Plotly.react("plot", traces(curves, name, palette, unit, !narrow), layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
    if (listening) return;
    listening = true;
    byId("plot").on("plotly_clickannotation", (event) => {
      const model = event.annotation.name;
      if (!hidden.delete(model)) hidden.add(model);
      draw();
    });
  }

  // Tables: a click on a heading sorts, numbers by value and text by letters; what is missing comes last.
  function fillTable(id, columns, rows, filter) {
    const table = byId(id), head = element("tr"), body = table.tBodies[0];
    let sorted = -1, down = false;
    const show = () => {
      const words = (filter ? filter.value : "").toLowerCase().split(/\s+/).filter(Boolean);
      const kept = rows.filter((row) => words.every((word) => row.searched.includes(word)));
      if (sorted >= 0) {
        kept.sort((a, b) => {
          const [x, y] = [a.keys[sorted], b.keys[sorted]];
          if (x === null || y === null) return (x === null) - (y === null);
          return (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true })) * (down ? -1 : 1);
        });
      }
      body.replaceChildren(...kept.map((row) => {
        const line = element("tr");
        row.shown.forEach((text, i) => line.append(element("td", text, [columns[i].text ? "text" : "", row.bad && columns[i].status ? "bad" : "", columns[i].reason ? "reason" : ""].join(" ").trim())));
        return line;
      }));
      if (filter) byId("count").textContent = `${kept.length} of ${rows.length} cells`;
    };
    columns.forEach((column, i) => {
      const heading = element("th", column.name, column.text ? "text" : "");
      heading.tabIndex = 0;
      heading.title = column.what || column.name;
      const sort = () => {
        down = sorted === i ? !down : false;
        sorted = i;
        [...head.children].forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        show();
      };
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
      head.append(heading);
    });
    table.tHead.replaceChildren(head);
    if (filter) filter.addEventListener("input", show);
    show();
  }

  function writeCells() {
    const conditions = groups.length > 1;
    const columns = [
      ...(several ? [{ name: "run", text: true }] : []),
      { name: "model", text: true }, { name: "size" }, ...(conditions ? [{ name: "conditions", text: true }] : []), { name: "batch" }, { name: "status", text: true, status: true },
      ...names.map((name) => ({ name: data.metrics[name].label + (data.metrics[name].unit ? `, ${data.metrics[name].unit}` : ""), what: data.metrics[name].what })),
      { name: "reason", text: true, reason: true },
    ];
    const rows = groups.flatMap((group) => group.cells.map((cell) => {
      const values = names.map((name) => cell.values[name] ? cell.values[name][0] / data.metrics[name].factor : null);
      const front = [...(several ? [group.run] : []), cell.model, cell.pixels, ...(conditions ? [group.short] : []), cell.batch, cell.status + (cell.disturbed ? " !" : "") + (cell.launch_bound ? " ~" : "")];
      const keys = [...front, ...values, cell.reason || null];
      const shown = keys.map((key, i) => key === null ? "–" : typeof key === "number" && i >= front.length ? number(key) : String(key));
      shown[several ? 2 : 1] = cell.size;
      return { keys, shown, searched: shown.join(" ").toLowerCase(), bad: cell.status !== "ok" };
    }));
    fillTable("table", columns, rows, byId("filter"));
  }

  function writeExponents() {
    const columns = [...(several ? [{ name: "run", text: true }] : []), { name: "model", text: true }, { name: "metric", text: true }, { name: "batch" }, { name: "dtype", text: true }, { name: "exponent" }, { name: "95 %", text: true }, { name: "larger half" }, { name: "up to" }];
    const rounded = (value) => value === null || value === undefined ? "–" : value.toFixed(2);
    const rows = data.runs.flatMap((run) => run.exponents.filter((row) => row.exponent !== null).map((row) => {
      const keys = [...(several ? [run.name] : []), row.model, row.metric, row.batch, row.dtype, row.exponent, row.exponent_ci_low, row.exponent_large ?? null, row.largest_pixels ?? null];
      const interval = row.exponent_ci_low === null || row.exponent_ci_low === undefined ? "–" : `${rounded(row.exponent_ci_low)} to ${rounded(row.exponent_ci_high)}`;
      const shown = [...(several ? [run.name] : []), row.model, data.metrics[row.metric]?.label ?? row.metric, String(row.batch), row.dtype, rounded(row.exponent), interval, rounded(row.exponent_large), row.largest_pixels ? String(Math.round(Math.sqrt(row.largest_pixels))) : "–"];
      return { keys, shown, searched: shown.join(" ").toLowerCase(), bad: false };
    }));
    if (!rows.length) {
      byId("growth").hidden = document.querySelector("nav [href='#growth']").hidden = true;
      return;
    }
    fillTable("exponents", columns, rows, null);
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  }

  function download() {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([data.csv], { type: "text/csv" }));
    link.download = `${data.runs.map((run) => run.name).join("+").slice(0, 100)}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  groups.forEach((group, i) => byId("conditions").append(new Option((several ? `${group.run}: ` : "") + group.conditions, i)));
  names.forEach((name) => byId("metric").append(new Option(data.metrics[name].label, name)));
  models.forEach((model) => byId("reference").append(new Option(model, model)));
  for (const id of ["conditions", "metric", "view", "reference", "logx", "logy"]) byId(id).addEventListener("change", draw);
  byId("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
  byId("download").addEventListener("click", download);
  byId("yardsticks").hidden = !data.metrics.relative_latency;
  writeWords();
  writeCells();
  writeExponents();
  draw();
})();
