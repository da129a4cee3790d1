// Builds the page from the JSON in #data. Texts go in as text nodes only, never as HTML.

const told = JSON.parse(document.getElementById("data").textContent);
const { analysis, names, rows: table, run } = told;
const own = analysis.against ? analysis.against.data : analysis.data;
const other = analysis.against ? analysis.against.other : null;
const legend = other ? [names.data, names.other] : [names.data];
const pairs = other ? [[names.data, own], [names.other, other]] : [[names.data, own]];

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const count = (number) => number.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (share) => `${(share * 100).toFixed(1)}%`;
const signed = (number, digits) => number.toFixed(digits).replace(/^-(0\.0+)$/, "$1").replace("-", "\u2212");
const measured = (part) => part && part.type !== "unfit";
// Some numbers are estimates with an interval, some are plain.
const estimate = (value) => (typeof value === "number" ? { value, low: null, high: null } : value);

// ---- the first screen

const SIGNS = { fault: "!", clear: "\u2713", unknown: "\u2013" };
const STATES = { fault: "fault", clear: "no fault", unknown: "not measured" };
const ARROWS = { up: "\u2191", down: "\u2193", both: "\u21C5", apart: "\u0394", same: "\u2248" };
const FILTER_OF = { label_noise: "suspect", near_duplicates: "duplicate", overlap: "overlap" };

function head() {
  const { data, against } = analysis;
  const beside = against
    ? [" beside ", el("bdi", { class: "of-other" }, names.other), ` (${plural(against.other.sampled_from, "row")}), ${count(against.rows)} of each`]
    : [];
  document.getElementById("head").append(
    el("p", { class: "kicker" }, analysis.simulated ? el("span", { class: "simulated" }, "SIMULATED rows, not from a language model") : "targen analyze"),
    el("h1", null, told.title),
    el("p", { class: "muted" }, el("bdi", { class: "of-data" }, names.data), ` (${plural(data.rows, "row")})`, ...beside),
  );
}

function check(one) {
  const filter = one.state === "fault" && FILTER_OF[one.kind];
  const button = filter && table.shown[filter]
    ? el("button", { class: "small", onclick: () => showRows(filter) }, "show rows")
    : null;
  return el("li", { class: one.state, "data-kind": one.kind },
    el("span", { class: "sign", title: STATES[one.state], "aria-label": STATES[one.state] }, SIGNS[one.state]),
    el("span", null, el("b", null, one.title), ": ", el("bdi", null, one.text)), button);
}

function checks() {
  const faults = told.checks.filter((one) => one.state === "fault");
  const rest = told.checks.filter((one) => one.state !== "fault");
  const title = faults.length ? plural(faults.length, "fault") + " found" : "No fault found";
  return el("div", { class: "paper", id: "faults" }, el("h2", null, title),
    faults.length ? el("ul", { class: "checks faults" }, faults.map(check)) : null,
    el("ul", { class: "checks" }, rest.map(check)));
}

function interval(line) {
  if (line.low === undefined || line.low === null || !other) return null;
  const most = Math.max(Math.abs(line.low), Math.abs(line.high)) * 1.08 || 1;
  const at = (value) => 50 + (value / most) * 50;
  const range = el("i"), dot = el("b");
  range.style.left = at(line.low) + "%";
  range.style.width = at(line.high) - at(line.low) + "%";
  dot.style.left = at(line.value) + "%";
  return el("div", { class: line.sure ? "span sure" : "span", "aria-hidden": "true" }, range, dot);
}

function lineOf(line) {
  const apart = line.apart ? el("div", { class: "numbers muted" }, `difference ${line.apart}`, line.word ? `: ${line.word}` : "") : null;
  return el("div", { class: "line" },
    el("div", { class: "what" }, el("span", null, line.name), el("span", { class: "numbers" },
      el("span", { class: "of-data" }, line.data), ...(line.other ? [" / ", el("span", { class: "of-other" }, line.other)] : []))),
    interval(line), apart);
}

function area(one) {
  const first = one.lines.find((line) => line.sure) || one.lines[0];
  const rest = one.lines.filter((line) => line !== first);
  const answer = other
    ? el("div", { class: "head" },
      el("span", { class: "arrow " + one.arrow, "aria-hidden": "true" }, ARROWS[one.arrow]),
      el("div", null, el("p", { class: "kicker" }, one.title), el("div", { class: "verdict" }, one.verdict)))
    : el("h3", null, one.title);
  return el("article", { class: "paper area" }, answer,
    el("div", { class: "first" }, lineOf(first)),
    rest.length ? el("details", null, el("summary", null, `${plural(rest.length, "more measure")}`), rest.map(lineOf),
      one.about ? el("p", { class: "muted" }, one.about) : null) : el("p", { class: "muted" }, one.about));
}

function verdicts() {
  const how = other
    ? "Arrows tell where the data lie against the other set; a tick is the difference, the bar its 95% interval, the dashed line no difference at all. One bar in twenty leaves that line by chance, so a card answers for all its measures together (Bonferroni): where nothing differs, 19 cards in 20 say so."
    : "Numbers in brackets are 95% intervals. Name another set with --against to compare.";
  return el("section", { id: "verdicts" }, checks(),
    el("div", { class: "areas" }, told.areas.map(area)), el("p", { class: "muted" }, how));
}

// ---- pictures

const drawn = [];
function picture(title, about, make, { wide = false, canvas = false, after = null, top = null } = {}) {
  const place = el("div", { class: "chart", role: "img", "aria-label": title });
  drawn.push({ place, make, canvas, after });
  return el("figure", { class: wide ? "paper wide" : "paper" }, el("h3", null, title), el("figcaption", null, about), top, place,
    after ? el("div", { class: "told", "aria-live": "polite" }) : null);
}

async function draw(one) {
  const result = await vegaEmbed(one.place, one.make(palette()), {
    actions: false, ast: true, defaultStyle: false, renderer: one.canvas ? "canvas" : "svg",
    tooltip: { disableDefaultStyle: true },
  });
  if (one.result) one.result.finalize();
  one.result = result;
  if (one.after) result.view.addEventListener("click", (_, item) => item && item.datum && one.after(item.datum, one.place.nextSibling));
}

async function drawAll() {
  for (const one of drawn) await draw(one);
  document.documentElement.dataset.drawn = "yes";
}

function section(id, title, about, ...figures) {
  const there = figures.flat().filter(Boolean);
  return there.length ? el("section", { id }, el("h2", null, title), el("p", { class: "muted" }, about), el("div", { class: "pictures" }, there)) : null;
}

function spread(get) {
  // [{name, set, value, low, high}] of a table of estimates in each set.
  return pairs.flatMap(([set, measures]) =>
    Object.entries(get(measures) || {}).filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => ({ name, set, ...estimate(value) })));
}
const mapped = (object, get) => Object.fromEntries(Object.entries(object || {}).map(([name, part]) => [name, get(part)]));

function difficulty() {
  const fit = pairs.filter(([, measures]) => measured(measures.difficulty));
  if (!fit.length) return null;
  const shown = fit.map(([set]) => set);
  let bins = fit.flatMap(([set, { difficulty: { histogram: h } }]) => {
    const all = h.counts.reduce((sum, number) => sum + number, 0);
    return h.counts.map((number, at) => ({ set, from: h.edges[at], to: h.edges[at + 1], share: number / all }));
  });
  const filled = bins.filter((bin) => bin.share > 0).map((bin) => bin.from);
  const low = Math.min(...filled, -0.5) - 0.25, high = Math.max(...filled, 0.5) + 0.25;
  bins = bins.filter((bin) => bin.from >= low && bin.from <= high);
  const means = fit.map(([set, m]) => `${set} ${signed(m.difficulty.v_information.value, 2)} bits`).join(", ");
  const labels = spread((m) => (measured(m.difficulty) ? m.difficulty.by_label : null));
  return section("difficulty", "Difficulty",
    `Pointwise V-information (PVI): how many bits a row's text tells of its label, to a model that has not seen the row (${fit[0][1].difficulty.model}). Below 0 the text speaks against the label.`,
    picture("PVI of the rows", `Left of the dashed line: hard or mislabelled. Mean: ${means}.`, (c) => overlaid(c, shown, bins, "PVI, bits")),
    picture("Mean PVI by label", "Bits, with 95% intervals.", (c) => dots(c, shown, labels, { title: "mean PVI, bits", rules: [0], zero: true })),
    told.cartography.length ? picture("Cartography", "Each dot is a row. Top left: easy. Right: ambiguous. Bottom left: hard or mislabelled. Click one for its text.",
      (c) => cartography(c, told.cartography), { wide: true, canvas: true, after: tell }) : null);
}

// The cells of a table of from and to, labels in one order both ways and other outcomes after them.
function cells(lines) {
  const froms = Object.keys(lines).sort();
  const outcomes = [...new Set(froms.flatMap((from) => Object.keys(lines[from])))].sort();
  const tos = [...froms.filter((name) => outcomes.includes(name)), ...outcomes.filter((name) => !froms.includes(name))];
  return froms.flatMap((from) => {
    const all = Object.values(lines[from]).reduce((a, b) => a + b, 0);
    return tos.map((to) => ({ from, to, value: lines[from][to] || 0, share: all ? (lines[from][to] || 0) / all : 0 }));
  });
}

function labels() {
  const { labels: quality } = analysis.data;
  const moves = (run && Object.keys(run.transitions).length && run.transitions) || (quality.correction && quality.correction.transitions);
  const shares = spread((m) => m.labels.shares);
  const { votes, simulator_gold: gold } = quality;
  const about = [
    "How often each label is given, and how far the labels can be trusted.",
    gold && gold.correct ? `By the simulator's own gold ${percent(gold.correct.value)} of ${plural(gold.known, "label")} are right, and ${percent(gold.correct_before_correction.value)} were before correction.` : "",
    votes ? `Judges gave ${votes.votes_per_row.toFixed(1)} votes a row; all were alike in ${percent(votes.unanimous.value)} of the rows, and ${percent(votes.agreement.value)} of all pairs of votes agreed.` : "",
  ].filter(Boolean).join(" ");
  const most = new Set(shares.map((row) => row.name)).size;
  return section("labels", "Labels", about,
    most && most <= 24 ? picture("Balance", "Share of the labelled rows.", (c) => bars(c, legend, shares, { title: "share of rows", format: ".0%" })) : null,
    moves ? picture("What self-correction did", "From the label a row was written for to what became of it. Rows; the colour is the share of the line.",
      (c) => matrix(c, cells(moves), { from: "written for", to: "after correction", format: ",d" })) : null,
    measured(quality.noise) ? picture("Given and likely labels", `Confident learning takes ${percent(quality.noise.share.value)} of the labels for wrong. Share of all rows.`,
      (c) => matrix(c, cells(quality.noise.joint), { from: "given", to: "likely true", format: ".1%" })) : null);
}

function projection() {
  if (!told.projection.length) return null;
  return section("map", "Map", `${analysis.projection.method}, both sets in one fit. A picture only: no number of this page is made from it.`,
    picture("Rows that are near each other in meaning or words", "Where one colour is alone, the other set has nothing like it. Point at a dot for its text; click a name above to see one set.",
      (c) => map(c, legend, told.projection), { wide: true, canvas: true, after: tell }));
}

function tell(datum, place) {
  if (!datum.text) return;
  place.replaceChildren(el("p", { class: "note" }, el("b", null, datum.key), ` ${datum.label || ""} `, el("bdi", null, datum.text)));
}

const KINDS = { countries: "countries", nationalities: "nationalities", names: "given names", pronouns: "pronouns", occupations: "occupations", events: "events", products: "products" };
function entities() {
  const kinds = Object.keys(KINDS).filter((kind) => spread((m) => m.bias[kind] && m.bias[kind].per_1000).length);
  if (!kinds.length) return null;
  let kind = kinds[0];
  const rows = () => {
    const all = spread((m) => m.bias[kind] && m.bias[kind].per_1000);
    const most = {};
    for (const row of all) most[row.name] = Math.max(most[row.name] || 0, row.value);
    const top = Object.keys(most).sort((a, b) => most[b] - most[a] || (a < b ? -1 : 1)).slice(0, 12);
    const value = Object.fromEntries(all.map((row) => [row.set + "\n" + row.name, row]));
    return top.flatMap((name) => legend.map((set) => value[set + "\n" + name] || { name, set, value: 0, low: null, high: null }));
  };
  const buttons = el("div", { class: "choices", role: "group", "aria-label": "kind" }, kinds.map((name) =>
    el("button", { "aria-pressed": String(name === kind), onclick: (event) => {
      kind = name;
      for (const button of buttons.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      draw(drawn.find((one) => one.place === figure.querySelector(".chart")));
    } }, KINDS[name])));
  const figure = picture("Who and what is named", "The twelve most frequent, rows of 1,000 that name them.", (c) => bars(c, legend, rows(), { title: "rows of 1,000" }), { top: buttons });
  return figure;
}

const LEAST_ROWS = 5; // With fewer an interval tells nothing.
function bias() {
  const women = (group) => spread((m) => mapped(m.bias[group], (gender) => gender.share_female));
  const jobs = women("gender_by_occupation").filter((row) => row.rows >= LEAST_ROWS), byLabel = women("gender_by_label");
  const top = [...new Set(jobs.map((row) => row.name))].slice(0, 12);
  const share = { title: "share female", format: ".0%", rules: [0.5], domain: [0, 1] };
  const about = "Rows whose words (pronouns, given names, nouns) are of one gender only; the dashed line is half.";
  return section("bias", "Bias", own.bias.method === "rules" ? "Counted by lists of words, each row once; lists know no context." : `Counted by ${own.bias.method}, and by lists of words; each row once.`,
    entities(),
    byLabel.length ? picture("Women by label", about, (c) => dots(c, legend, byLabel, share)) : null,
    jobs.length ? picture("Women by occupation", `${about} Occupations with ${LEAST_ROWS} such rows or more.`, (c) => dots(c, legend, jobs.filter((row) => top.includes(row.name)), share)) : null);
}

function leaks() {
  const places = spread((m) => measured(m.artefacts.position) && { ...m.artefacts.position.shares, "the longest": m.artefacts.position.longest_is_right });
  const even = places.length ? 1 / (new Set(places.map((row) => row.name)).size - 1) : 0;
  const lengths = spread((m) => Object.fromEntries(Object.entries(m.artefacts.length).flatMap(([field, length]) =>
    Object.entries(length.words).map(([label, words]) => [`${field}: ${label}`, words]))));
  const gains = spread((m) => ({
    ...Object.fromEntries(Object.entries(m.artefacts.one_field).filter(([, one]) => measured(one)).map(([field, one]) => [`${field} alone`, one.gain])),
    ...Object.fromEntries(Object.entries(m.artefacts.length).map(([field, length]) => [`length of ${field}`, length.gain])),
  }));
  const plain = pairs.filter(([, m]) => m.artefacts.label_only).map(([set, m]) => `${set} ${percent(m.artefacts.label_only.value)}`);
  const about = "A model that has learnt one of these can be right without having read the task.";
  return section("leaks", "What gives the label away", plain.length ? `${about} Always saying the most frequent label is right in: ${plain.join(", ")}.` : about,
    gains.length ? picture("Guessing with half the picture", "How many more labels are guessed right than by always saying the most frequent. Dashed: none, and 5 points, from where it is told as a fault.",
      (c) => dots(c, legend, gains, { title: "gain over guessing", format: ".0%", rules: [0, 0.05], zero: true })) : null,
    places.length ? picture("Position of the right answer", "Share of the rows in which each is right; dashed: each as often.",
      (c) => dots(c, legend, places, { title: "share of rows", format: ".0%", rules: [even], domain: [0, 1] })) : null,
    lengths.length && lengths.length <= 80 ? picture("Length by label", "Mean number of words of each field.", (c) => dots(c, legend, lengths, { title: "words", zero: true })) : null);
}

// ---- the run

function fact(name, value, more) {
  return el("div", null, el("dt", null, name), el("dd", null, value, more ? el("span", { class: "muted" }, more) : null));
}

function costs() {
  if (!run) return null;
  const { calls, spent, wasted } = run;
  const asked = (run.config.delivery || {}).limits || {};
  const limit = (value, word) => (value ? `${count(value)} ${word}` : `no limit of ${word}`);
  const all = calls.served + calls.refused + calls.in_doubt;
  const tokens = spent.prompt_tokens + spent.completion_tokens, lost = wasted.prompt_tokens + wasted.completion_tokens;
  const usd = (value) => (value >= 0.995 || value === 0 ? `$${value.toFixed(2)}` : `$${value.toPrecision(2)}`);
  const trouble = [...Object.entries(run.rejected).map(([name, value]) => ({ name, set: "rejected", value })),
    ...Object.entries(run.failed).map(([name, value]) => ({ name, set: "failed", value }))].sort((a, b) => b.value - a.value);
  const facts = el("dl", { class: "facts paper" },
    fact("rows", `${count(run.delivered)} of ${count(run.n)}`, `${run.state}${run.reason ? ": " + run.reason : ""}`),
    fact("cost", spent.usd === null || spent.usd === undefined ? "not known" : usd(spent.usd),
      run.simulated ? "simulated: nothing was paid" : run.usd_at_most === null || run.usd_at_most === undefined ? "no price is known" : `at most ${usd(run.usd_at_most)}`),
    fact("tokens", count(tokens), `${count(spent.prompt_tokens)} asked, ${count(spent.completion_tokens)} answered`),
    fact("tokens that bought no row", tokens ? percent(lost / tokens) : "0", count(lost)),
    fact("calls answered", count(calls.served), `${(calls.served / Math.max(run.delivered, 1)).toFixed(2)} a row`),
    fact("calls refused", count(calls.refused), `${percent(all ? calls.refused / all : 0)} of all; 429, 5xx, no connection`),
    fact("calls in doubt", count(calls.in_doubt), calls.hedged ? `${count(calls.hedged)} were sent twice as they stalled` : "sent, no answer came"),
    fact("limits asked for", limit(asked.max_in_flight, "calls in flight"), [limit(asked.requests_per_minute, "requests a minute"), limit(asked.tokens_per_minute, "tokens a minute"),
      asked.adaptive ? "adapted to the endpoint" : "fixed"].join("; ")),
    ...(run.now ? run.now.limits : []).map((one) => fact(`limits at work, ${one.name}`, `${count(one.in_flight)} of ${count(one.most_in_flight)} calls out`,
      [`${count(Math.round(one.requests_per_minute))} requests and ${count(Math.round(one.tokens_per_minute))} tokens in the last minute`, `${count(one.refused)} times 429 since its start`, one.waits_for].filter(Boolean).join("; "))));
  const failures = run.failures.length ? el("div", { class: "paper" }, el("h3", null, "Questions without an answer"),
    el("table", null, el("tbody", null, run.failures.map((one) => el("tr", null, el("td", null, one.kind), el("td", null, el("bdi", null, one.message)), el("td", { class: "muted" }, one.key)))))) : null;
  const picture_ = trouble.length ? picture("Refused and failed", "Contexts, seeds and rows that were paid for and not delivered, and questions without a usable answer, by reason.",
    (c) => bars(c, [...new Set(trouble.map((row) => row.set))], trouble, { title: "number" })) : null;
  return el("section", { id: "run" }, el("h2", null, "The run"), el("p", { class: "muted" }, `Model: ${Object.keys(run.models).join(", ") || run.model}.`),
    facts, el("p", { class: "muted" }, run.now ? `Limits at work: as the run told them last, at ${run.now.at}.` : "How the limits moved on the way is not in a run's folder: while it works targen status --watch shows it, and the file of --log keeps what they learnt and when calls waited."), el("div", { class: "pictures" }, picture_, failures));
}

// ---- all of it

head();
const sections = [verdicts(), difficulty(), labels(), projection(), bias(), leaks(), rowsSection(), costs()].filter(Boolean);
const TITLES = { verdicts: "Verdicts", difficulty: "Difficulty", labels: "Labels", map: "Map", bias: "Bias", leaks: "Leaks", rows: "Rows", run: "Run" };
document.getElementById("main").append(el("nav", { "aria-label": "sections" }, sections.map((one) => el("a", { href: "#" + one.id }, TITLES[one.id]))), ...sections);
document.getElementById("foot").append(el("p", null,
  `targen-async ${analysis.targen}, random seed ${analysis.random_seed}. All numbers: analysis.json. All rows: rows.parquet. This page asks for nothing from any network.`));
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
