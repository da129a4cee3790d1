// The table of rows: filters, search, and a few rows at a time.

const FILTERS = {
  all: "All", lowest: "Lowest PVI", suspect: "Label suspected", duplicate: "Near duplicates", overlap: "Overlaps", relabelled: "Relabelled",
};
const TAGS = { lowest: "low PVI", suspect: "suspected", duplicate: "near duplicate", overlap: "overlaps", relabelled: "relabelled" };
const AT_ONCE = 25;
const chosen = { filter: "all", label: "", words: "", most: AT_ONCE };
const page = {};

function matching() {
  const words = chosen.words.toLowerCase().split(/\s+/).filter(Boolean);
  const found = table.rows.filter((row) =>
    (chosen.filter === "all" || (row.flags || []).includes(chosen.filter)) &&
    (!chosen.label || row.label === chosen.label) &&
    words.every((word) => row.found.includes(word)));
  const pvi = (row) => (row.pvi === undefined ? Infinity : row.pvi);
  if (chosen.filter === "lowest" || chosen.filter === "suspect") found.sort((a, b) => pvi(a) - pvi(b));
  if (chosen.filter === "duplicate") found.sort((a, b) => page.order[a.cluster] - page.order[b.cluster]);
  return found;
}

function marked(text) {
  // Text nodes and <mark> around each word that is searched for.
  const words = chosen.words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [text];
  const low = text.toLowerCase(), parts = [];
  if (low.length !== text.length) return [text];
  for (let at = 0; at < text.length; ) {
    const hits = words.map((word) => [low.indexOf(word, at), word.length]).filter(([start]) => start >= 0);
    const [start, length] = hits.sort((a, b) => a[0] - b[0] || b[1] - a[1])[0] || [text.length, 0];
    parts.push(text.slice(at, start));
    if (length) parts.push(el("mark", null, text.slice(start, start + length)));
    at = start + (length || 1);
  }
  return parts;
}

function rowOf(row, before) {
  const fresh = chosen.filter === "duplicate" && before && before.cluster !== row.cluster;
  const label = row.before !== undefined ? `${row.before ?? "–"} → ${row.label ?? "–"}` : row.label ?? "–";
  const texts = row.texts.map((text, at) => el("p", { dir: "auto" },
    own.fields.length > 1 ? el("span", { class: "field" }, told.fields[at]) : null, ...marked(text)));
  const open = () => line.classList.toggle("open");
  const line = el("tr", { class: fresh ? "first-of-cluster" : null },
    el("td", { class: "key" }, el("bdi", null, row.key), el("div", null, (row.flags || []).map((flag) => el("span", { class: "tag" }, TAGS[flag])))),
    el("td", { class: "label" }, el("bdi", null, label), row.likely !== undefined ? el("div", { class: "muted" }, "likely ", el("bdi", null, row.likely)) : null),
    el("td", { class: "pvi" }, row.pvi === undefined ? "" : signed(row.pvi, 2)),
    el("td", null, el("div", { class: "texts", tabindex: "0", onclick: open, onkeydown: (event) => event.key === "Enter" && open() }, texts),
      row.overlap ? el("div", { class: "muted" }, "stands also in ", el("bdi", null, row.overlap)) : null));
  return line;
}

function refresh() {
  const found = matching();
  page.body.replaceChildren(...found.slice(0, chosen.most).map((row, at) => rowOf(row, found[at - 1])));
  const flagged = table.flagged[chosen.filter];
  const left = flagged && flagged > table.shown[chosen.filter] ? ` of ${count(flagged)} in rows.parquet` : "";
  page.state.textContent = found.length ? `${plural(found.length, "row")}${left}` : "no row fits";
  page.more.hidden = found.length <= chosen.most;
  for (const button of page.filters.children) button.setAttribute("aria-pressed", String(button.dataset.filter === chosen.filter));
}

function choose(changes) {
  Object.assign(chosen, { most: AT_ONCE }, changes);
  refresh();
}

function showRows(filter) {
  page.search.value = page.label.value = "";
  choose({ filter, words: "", label: "" });
  document.getElementById("rows").scrollIntoView();
}

function rowsSection() {
  page.order = {};
  for (const row of table.rows) {
    row.found = [row.key, row.label, ...row.texts].join("\n").toLowerCase();
    if (row.cluster !== undefined) page.order[row.cluster] ??= Object.keys(page.order).length;
  }
  const kept = Object.keys(FILTERS).filter((name) => name === "all" || table.shown[name]);
  page.filters = el("div", { class: "choices", role: "group", "aria-label": "filter" }, kept.map((name) =>
    el("button", { "data-filter": name, "aria-pressed": "false", onclick: () => choose({ filter: name }) },
      `${FILTERS[name]} ${count(name === "all" ? table.rows.length : table.shown[name])}`)));
  page.search = el("input", { type: "search", placeholder: "Search texts, keys and labels", "aria-label": "search", oninput: (event) => choose({ words: event.target.value }) });
  const given = [...new Set(table.rows.map((row) => row.label).filter((label) => label !== null))].sort().slice(0, 50);
  page.label = el("select", { "aria-label": "label", onchange: (event) => choose({ label: event.target.value }) },
    el("option", { value: "" }, "every label"), given.map((label) => el("option", { value: label }, label)));
  page.state = el("p", { class: "muted", role: "status" });
  page.body = el("tbody");
  page.more = el("button", { onclick: () => { chosen.most += AT_ONCE; refresh(); } }, "Show more");
  const part = table.rows.length < table.total
    ? `${count(table.rows.length)} of ${count(table.total)} rows: flagged ones and a sample; all are in rows.parquet beside this page.`
    : "All rows; rows.parquet beside this page has them too.";
  const heads = ["row", "label", "PVI", "text"].map((name) => el("th", { scope: "col" }, name));
  const built = el("section", { id: "rows" }, el("h2", null, "Rows"), el("p", { class: "muted" }, part), page.filters,
    el("div", { class: "controls" }, page.search, page.label), page.state,
    el("div", { class: "paper" }, el("table", { class: "rows" }, el("thead", null, el("tr", null, heads)), page.body), page.more));
  refresh();
  return built;
}
