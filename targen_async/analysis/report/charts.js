// Specifications for Vega-Lite: data in, a plain object out. Colours come from the page's CSS.

function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue("--" + name).trim();
  return Object.fromEntries(
    ["ink", "muted", "line", "data", "other", "paper", "wash", "fault"].map((name) => [name, of(name)]),
  );
}

function spec(colours, parts) {
  const text = { labelColor: colours.ink, titleColor: colours.muted, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
  return {
    width: "container",
    background: null,
    config: {
      font: "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif",
      view: { stroke: null },
      axis: { ...text, gridColor: colours.line, domainColor: colours.muted, tickColor: colours.line, labelLimit: 170, labelPadding: 5 },
      axisY: { domain: false, ticks: false },
      legend: { ...text, orient: "top", title: null, symbolType: "circle", symbolOpacity: 1, labelLimit: 140, columns: 2 },
      text: { color: colours.ink, fontSize: 12 },
    },
    ...parts,
  };
}

const sets = (names, colours) => ({
  domain: names,
  range: names.length > 1 ? [colours.data, colours.other] : [colours.data],
});

// Shares of two sets by bins of one width, one over the other.
function overlaid(c, names, bins, title) {
  const low = Math.min(...bins.map((bin) => bin.from)), high = Math.max(...bins.map((bin) => bin.to));
  const step = high - low > 5 ? 1 : 0.5;
  const values = Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, at) => (Math.ceil(low / step) + at) * step);
  return spec(c, {
    height: 220,
    layer: [
      {
        data: { values: bins },
        mark: { type: "bar", opacity: 0.55, binSpacing: 0 },
        encoding: {
          x: { field: "from", type: "quantitative", bin: { binned: true, step: 0.25 }, title, scale: { domain: [low, high], nice: false }, axis: { grid: false, values, format: "~f" } },
          x2: { field: "to" },
          y: { field: "share", type: "quantitative", stack: null, title: "share of rows", axis: { format: ".0%", tickCount: 4 } },
          color: { field: "set", type: "nominal", scale: sets(names, c) },
          tooltip: [
            { field: "set", title: "set" },
            { field: "from", title: "from" },
            { field: "to", title: "to under" },
            { field: "share", title: "rows", format: ".1%" },
          ],
        },
      },
      { data: { values: [{ at: 0 }] }, mark: { type: "rule", color: c.ink, strokeDash: [4, 3] }, encoding: { x: { field: "at", type: "quantitative" } } },
    ],
  });
}

// The layer of those rows that have an interval, if there are any.
function intervals(rows, layer) {
  const values = rows.filter((row) => row.low !== null && row.low !== undefined);
  return values.length ? [{ data: { values }, ...layer }] : [];
}

const high = (rows, each) => new Set(rows.map((row) => row.name)).size * each;

// A dot and its 95 % interval for each name and set. `rules`: values to hold against.
function dots(c, names, rows, { title, format = ".3~g", rules = [], zero = false, domain }) {
  const several = names.length > 1;
  const y = { field: "name", type: "nominal", title: null, sort: null, axis: { labelLimit: 150 } };
  const offset = several ? { yOffset: { field: "set", sort: names, scale: { paddingOuter: 0.5 } } } : {};
  const colour = { field: "set", type: "nominal", scale: sets(names, c), legend: several ? {} : null };
  const x = { field: "value", type: "quantitative", title, scale: domain ? { domain } : { zero }, axis: { format, tickCount: 5 } };
  const tooltip = [
    { field: "name", title: "what" },
    { field: "set", title: "set" },
    { field: "value", title: "value", format },
    { field: "low", title: "from", format },
    { field: "high", title: "to", format },
  ];
  return spec(c, {
    height: high(rows, several ? 34 : 24),
    layer: [
      ...rules.map((rule) => ({
        data: { values: [{ at: rule }] },
        mark: { type: "rule", color: c.muted, strokeDash: [4, 3] },
        encoding: { x: { field: "at", type: "quantitative" } },
      })),
      ...intervals(rows, {
        mark: { type: "rule", strokeWidth: 3, opacity: 0.45 },
        encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y, ...offset, color: colour, tooltip },
      }),
      {
        data: { values: rows },
        mark: { type: "point", filled: true, size: 70, opacity: 1 },
        encoding: { x, y, ...offset, color: colour, tooltip },
      },
    ],
  });
}

// Bars of two sets side by side for each name, with their intervals where they have any.
function bars(c, names, rows, { title, format = ".3~g" }) {
  const several = names.length > 1;
  const y = { field: "name", type: "nominal", title: null, sort: null, axis: { labelLimit: 150 } };
  const offset = several ? { yOffset: { field: "set", sort: names } } : {};
  const x = { field: "value", type: "quantitative", title, axis: { format, tickCount: 5 } };
  return spec(c, {
    height: high(rows, several ? 28 : 22),
    layer: [
      {
        data: { values: rows },
        mark: { type: "bar", cornerRadiusEnd: 2 },
        encoding: {
          x, y, ...offset,
          color: { field: "set", type: "nominal", scale: sets(names, c), legend: several ? {} : null },
          tooltip: [{ field: "name", title: "what" }, { field: "set", title: "set" }, { field: "value", title, format }],
        },
      },
      ...intervals(rows, {
        mark: { type: "rule", color: c.ink, opacity: 0.7 },
        encoding: { x: { field: "low", type: "quantitative" }, x2: { field: "high" }, y, ...offset },
      }),
    ],
  });
}

// A table of from and to; the colour is the share of its row.
function matrix(c, cells, { from, to, format }) {
  const axes = {
    x: { field: "to", type: "nominal", sort: null, title: to, axis: { orient: "top", labelAngle: 0, domain: false, ticks: false } },
    y: { field: "from", type: "nominal", sort: null, title: from },
  };
  const tooltip = [
    { field: "from", title: from },
    { field: "to", title: to },
    { field: "value", title: "rows", format },
    { field: "share", title: "of its row", format: ".1%" },
  ];
  return spec(c, {
    height: new Set(cells.map((cell) => cell.from)).size * 46,
    data: { values: cells },
    layer: [
      {
        mark: { type: "rect", cornerRadius: 4 },
        encoding: { ...axes, tooltip, color: { field: "share", type: "quantitative", scale: { domain: [0, 1], range: [c.wash, c.data] }, legend: null } },
      },
      {
        mark: { type: "text", fontSize: 13 },
        encoding: {
          ...axes,
          tooltip,
          text: { field: "value", type: "quantitative", format },
          color: { condition: { test: "datum.share > 0.55", value: c.paper }, value: c.ink },
        },
      },
    ],
  });
}

// One point a row, coloured by its set; a click on a name of the legend leaves that set alone.
function map(c, names, points) {
  const hidden = { axis: null, scale: { zero: false, nice: false, padding: 8 } };
  return spec(c, {
    height: 420,
    data: { values: points },
    params: [{ name: "only", select: { type: "point", fields: ["set"] }, bind: "legend" }],
    mark: { type: "point", filled: true, size: 26 },
    encoding: {
      x: { field: "x", type: "quantitative", ...hidden },
      y: { field: "y", type: "quantitative", ...hidden },
      color: { field: "set", type: "nominal", scale: sets(names, c) },
      opacity: { condition: { param: "only", value: 0.6 }, value: 0.04 },
      tooltip: [{ field: "set", title: "set" }, { field: "label", title: "label" }, { field: "text", title: "text" }],
    },
  });
}

// Dataset cartography: how sure the model was of the label while it was trained, and how unsteadily.
function cartography(c, points) {
  return spec(c, {
    height: 380,
    data: { values: points },
    mark: { type: "point", filled: true, size: 28, opacity: 0.65 },
    encoding: {
      x: { field: "x", type: "quantitative", title: "variability over epochs" },
      y: { field: "y", type: "quantitative", title: "confidence in the label", scale: { domain: [0, 1] }, axis: { tickCount: 5 } },
      color: { field: "right", type: "quantitative", title: "epochs in which it was right", scale: { scheme: "viridis", domain: [0, 1] }, legend: { format: ".0%", title: "right in" , symbolType: "square"} },
      tooltip: [
        { field: "key", title: "row" },
        { field: "label", title: "label" },
        { field: "y", title: "confidence", format: ".2f" },
        { field: "x", title: "variability", format: ".2f" },
        { field: "text", title: "text" },
      ],
    },
  });
}
