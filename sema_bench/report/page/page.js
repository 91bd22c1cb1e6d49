"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-left", "pentagon", "triangle-right", "star", "diamond-tall", "hexagon", "octagon"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const byId = (id) => document.getElementById(id);
  const element = (name, text, kind) => { const made = document.createElement(name); if (text !== undefined) made.textContent = text; if (kind) made.className = kind; return made; };
  const number = (value) => value === 0 ? "0" : Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const several = data.runs.length > 1;

  const groups = data.runs.flatMap((run) => run.groups.map((group) => ({ run: run.name, ...group })));
  const models = [...new Set(groups.flatMap((group) => group.cells.map((cell) => cell.model)))];
  const names = Object.keys(data.metrics);

  function writeWords() {
    byId("subtitle").textContent = data.runs.map((run) => run.name + (run.created ? ` (${run.created})` : "")).join(" · ");
    for (const run of data.runs) {
      if (several) byId("words").append(element("h3", run.name));
      if (run.claim) byId("words").append(element("p", `Claim under test: ${run.claim}.`, "quiet"));
      if (run.unreadable) byId("words").append(element("p", run.unreadable === 1 ? "1 line of this run is no record and is left out." : `${run.unreadable} lines of this run are no records and are left out.`, "quiet"));
      for (const [conditions, sentences] of run.summary) {
        byId("words").append(element("p", conditions, "tick"));
        const list = element("ul");
        for (const sentence of sentences) list.append(element("li", sentence));
        byId("words").append(list);
      }
    }
    for (const run of data.runs) {
      const list = element("dl");
      const facts = [["run", run.name], ["created", run.created], ["command", run.command], ["commit", run.commit], ...run.machine];
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

  function traces(group, name, palette) {
    const metric = data.metrics[name];
    return models.flatMap((model) => {
      const cells = group.cells.filter((cell) => cell.model === model && cell.values[name]);
      if (!cells.length) return [];
      const values = cells.map((cell) => cell.values[name].map((value) => value === null ? null : value / metric.factor));
      const [place, dashes, symbol] = data.looks[model], colour = palette.lines[place];
      return [{
        type: "scatter", mode: "lines+markers", name: escaped(model), legendgroup: model,
        x: cells.map((cell) => Math.sqrt(cell.pixels)), y: values.map((value) => value[0]),
        error_y: cells.some((cell) => cell.seeds[name]) ? undefined : { type: "data", symmetric: false, thickness: 1, width: 3, color: colour,
          array: values.map((value) => value[2] === null ? 0 : value[2] - value[0]),
          arrayminus: values.map((value) => value[1] === null ? 0 : value[0] - value[1]) },
        text: cells.map((cell, i) => escaped(`${cell.size}: ${number(values[i][0])} ${metric.unit}` + (values[i][1] === null || values[i][2] === null ? "" : ` (${number(values[i][1])} to ${number(values[i][2])})`) + (cell.disturbed ? ", disturbed" : ""))),
        hovertemplate: "%{fullData.name}<br>%{text}<extra></extra>",
        line: { color: colour, width: 2, dash: DASHES[dashes] },
        marker: { color: colour, size: 8, symbol: SYMBOLS[symbol], line: { color: palette.paper, width: 1 } },
      }, {
        type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", legendgroup: model,
        x: cells.flatMap((cell) => (cell.seeds[name] || []).map(() => Math.sqrt(cell.pixels))),
        y: cells.flatMap((cell) => (cell.seeds[name] || []).map((value) => value / metric.factor)),
        marker: { color: colour, size: 4, symbol: SYMBOLS[symbol], opacity: 0.7 },
      }];
    });
  }

  function draw() {
    const group = groups[Number(byId("conditions").value)], name = byId("metric").value;
    if (!group || !name) { byId("plot").textContent = "Nothing was measured that could be drawn."; return; }
    const metric = data.metrics[name], palette = colours(), narrow = window.innerWidth < 700;
    const logarithmic = byId("logy").checked && !metric.share;
    byId("logy").disabled = metric.share;
    const sizes = [...new Map(group.cells.map((cell) => [Math.sqrt(cell.pixels), cell.size])).entries()].sort((a, b) => a[0] - b[0]);
    const axis = { color: palette.quiet, gridcolor: palette.line, linecolor: palette.line, zeroline: false, ticks: "outside", tickcolor: palette.line };
    const layout = {
      paper_bgcolor: palette.paper, plot_bgcolor: palette.paper, font: { color: palette.ink, size: 13, family: "system-ui, sans-serif" },
      margin: { l: 64, r: 12, t: 12, b: 56 }, hovermode: "closest", hoverlabel: { bgcolor: palette.paper, bordercolor: palette.line, font: { color: palette.ink } },
      legend: narrow ? { orientation: "h", y: -0.2, font: { size: 11.5 } } : { x: 1.01, y: 0.92 },
      xaxis: { ...axis, title: { text: "image side, pixels" }, type: byId("logx").checked ? "log" : "linear", tickmode: "array", tickvals: sizes.map((s) => s[0]), ticktext: sizes.map((s) => escaped(s[1])), tickangle: narrow || sizes.length > 9 ? -45 : 0 },
      yaxis: { ...axis, title: { text: `${metric.label}${metric.unit ? `, ${metric.unit}` : ""}` }, type: logarithmic ? "log" : "linear", rangemode: logarithmic ? "normal" : "tozero", autorangeoptions: metric.share ? { clipmin: 0, clipmax: 1 / metric.factor } : {}, dtick: logarithmic ? "D1" : undefined },
    };
    byId("metric-what").textContent = `${metric.what}; ${metric.higher ? "higher" : "lower"} is better`;
    Plotly.react("plot", traces(group, name, palette), layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  }

  // Tables: a click on a heading sorts, numbers by value and text by letters; what is missing comes last.
  function fillTable(id, columns, rows, filter) {
    const table = byId(id), head = element("tr"), body = table.tBodies[0];
    let sorted = -1, down = false;
    const show = () => {
      const words = (filter ? filter.value : "").toLowerCase().split(/\s+/).filter(Boolean);
      const kept = rows.filter((row) => words.every((word) => row.found.includes(word)));
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
      const front = [...(several ? [group.run] : []), cell.model, cell.pixels, ...(conditions ? [group.short] : []), cell.batch, cell.status + (cell.disturbed ? " !" : "")];
      const keys = [...front, ...values, cell.reason || null];
      const shown = keys.map((key, i) => key === null ? "–" : typeof key === "number" ? number(key) : key);
      shown[several ? 2 : 1] = cell.size;
      return { keys, shown, found: shown.join(" ").toLowerCase(), bad: cell.status !== "ok" };
    }));
    fillTable("table", columns, rows, byId("filter"));
  }

  function writeExponents() {
    const columns = [...(several ? [{ name: "run", text: true }] : []), { name: "model", text: true }, { name: "metric", text: true }, { name: "batch" }, { name: "dtype", text: true }, { name: "exponent" }, { name: "95 %", text: true }, { name: "larger half" }, { name: "last two" }, { name: "up to" }];
    const rounded = (value) => value === null || value === undefined ? "–" : value.toFixed(2);
    const rows = data.runs.flatMap((run) => run.exponents.filter((row) => row.exponent !== null).map((row) => {
      const keys = [...(several ? [run.name] : []), row.model, row.metric, row.batch, row.dtype, row.exponent, row.exponent_ci_low, row.exponent_large ?? null, row.exponent_tail ?? null, row.largest_pixels ?? null];
      const interval = row.exponent_ci_low === null || row.exponent_ci_low === undefined ? "–" : `${rounded(row.exponent_ci_low)} to ${rounded(row.exponent_ci_high)}`;
      const shown = [...(several ? [run.name] : []), row.model, row.metric, String(row.batch), row.dtype, rounded(row.exponent), interval, rounded(row.exponent_large), rounded(row.exponent_tail), row.largest_pixels ? String(Math.round(Math.sqrt(row.largest_pixels))) : "–"];
      return { keys, shown, found: shown.join(" ").toLowerCase(), bad: false };
    }));
    if (!rows.length) { byId("growth").hidden = true; return; }
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
  for (const id of ["conditions", "metric", "logx", "logy"]) byId(id).addEventListener("change", draw);
  byId("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
  byId("download").addEventListener("click", download);
  writeWords();
  writeCells();
  writeExponents();
  draw();
})();
