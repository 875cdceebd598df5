"use strict";
const root = document.documentElement, content = document.getElementById("content");
const themes = JSON.parse(document.getElementById("themes").textContent);
const preferred = matchMedia("(prefers-color-scheme: dark)");
const specs = new Map(), views = new Map();  // of panels and of those that are drawn, by id
// what a reader chose, kept when the content is made again
const hidden = new Map(), sorts = new Map(), filters = new Map(), opened = new Set();
root.classList.add("js");

// Theme

let chosen = null;
try { chosen = localStorage.getItem("moebench-theme"); } catch { /* a file may have no storage */ }
const isDark = () => chosen ? chosen === "dark" : preferred.matches;
function applyTheme() {
  if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
  const button = document.getElementById("theme");
  button.hidden = false;
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
}
function changeTheme() {
  applyTheme();
  [...views.keys()].forEach(id => draw(document.getElementById(id)));
}
preferred.addEventListener("change", changeTheme);

// Plots

// the ends to which an axis was moved, by the name of its field; none where it was not
const isZoom = name => /^zoom_(?!tuple|translate|modify)/.test(name);
async function draw(panel) {
  const spec = JSON.parse(specs.get(panel.id)), section = panel.closest("section").id;
  const theme = isDark() ? "dark" : "light", config = { ...themes[theme], font: getComputedStyle(document.body).fontFamily };
  spec.params.find(each => each.name === "hidden").value = [...(hidden.get(section) ?? [])];
  const place = document.createElement("div"), old = views.get(panel.id);
  place.style.width = "100%";
  place.setAttribute("aria-hidden", "true");  // the panel describes it, and tables hold the numbers
  const zoomed = Object.entries(old?.view.getState({ signals: isZoom, data: () => false }).signals ?? {}).filter(([, ends]) => Array.isArray(ends));
  panel.append(place);
  const drawn = await vegaEmbed(place, { ...spec, config }, { mode: "vega-lite", renderer: "svg", ast: true, actions: false, logLevel: 1, tooltip: { theme } });
  if (zoomed.length) {
    zoomed.forEach(([name, ends]) => drawn.view.signal(name, ends));
    drawn.view.runAsync();
  }
  [...panel.children].filter(child => child !== place).forEach(child => child.remove());
  panel.style.minHeight = "";
  old?.finalize();
  views.set(panel.id, drawn);
}
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (!entry.isIntersecting) return;
  seen.unobserve(entry.target);
  draw(entry.target);
}), { rootMargin: "800px" });
function toggle(section, arm) {
  const off = hidden.get(section) ?? new Set();
  if (!off.delete(arm)) off.add(arm);
  hidden.set(section, off);
  showLegends(section);
  for (const [id, { view }] of views) {
    if (document.getElementById(id).closest("section").id === section) view.signal("hidden", [...off]).runAsync();
  }
}
function showLegends(section) {
  document.getElementById(section)?.querySelectorAll(".legend button").forEach(button =>
    button.setAttribute("aria-pressed", !hidden.get(section)?.has(button.dataset.arm)));
}

// Tables

const words = new Intl.Collator("en", { numeric: true });
function value(row, column) {
  const text = row.cells[column].querySelector("span")?.textContent.trim() ?? row.cells[column].firstChild?.textContent.trim() ?? "";
  const number = parseFloat(text.replace(/,/g, ""));
  return column && !isNaN(number) ? number : text;
}
function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return typeof a === "number" ? -1 : typeof b === "number" ? 1 : words.compare(a, b);
}
const missing = each => each === "" || each === "-";
function sort(table, asMade) {
  const { column, way } = sorts.get(table.id) ?? {};
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    if (at === column) head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending"); else head.removeAttribute("aria-sort");
  });
  if (column === undefined) { table.tBodies[0].append(...asMade); return; }
  const key = new Map(asMade.map(row => [row, value(row, column)]));
  table.tBodies[0].append(...asMade.toSorted((r, s) => {
    const a = key.get(r), b = key.get(s);  // what is missing stays last
    return missing(a) || missing(b) ? missing(a) - missing(b) : way * order(a, b);
  }));
}
function filter(table) {
  const wanted = (filters.get(table.id) ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every(word => word.startsWith("-") && word.length > 1 ? !text.includes(word.slice(1)) : text.includes(word));
  }
}
function enhanceTable(table) {
  const asMade = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const now = sorts.get(table.id);  // up, down, and back to the order in which the rows were made
    if (now?.column !== column) sorts.set(table.id, { column, way: 1 });
    else if (now.way > 0) sorts.set(table.id, { column, way: -1 });
    else sorts.delete(table.id);
    sort(table, asMade);
  }));
  if (sorts.has(table.id)) sort(table, asMade);
  if (asMade.length < 8) return;  // a glance finds what it seeks
  const label = document.createElement("label"), input = document.createElement("input");
  label.className = "filter";
  input.type = "search";
  input.placeholder = "words, or -word to leave out";
  input.value = filters.get(table.id) ?? "";
  input.addEventListener("input", () => { filters.set(table.id, input.value); filter(table); });
  label.append("Filter rows: ", input);
  table.parentElement.before(label);
  if (input.value) filter(table);
}

// The content, which a live page makes again

function enhance() {
  content.querySelectorAll("table[id]").forEach(enhanceTable);
  content.querySelectorAll(".legend button").forEach(button =>
    button.addEventListener("click", () => toggle(button.closest("section").id, button.dataset.arm)));
  hidden.forEach((_, section) => showLegends(section));
  content.querySelectorAll("details").forEach(each => {
    each.open = opened.has(each.id);
    each.addEventListener("toggle", () => each.open ? opened.add(each.id) : opened.delete(each.id));
  });
  content.querySelectorAll(".panel").forEach(panel => {
    const script = panel.querySelector("script"), same = specs.get(panel.id) === script.textContent;
    specs.set(panel.id, script.textContent);
    script.remove();
    if (!same || !panel.childElementCount) seen.observe(panel);
  });
  document.getElementById("theme").addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try { localStorage.setItem("moebench-theme", chosen); } catch { /* then only until it is closed */ }
    changeTheme();
  });
  applyTheme();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => each.open = true));
enhance();

function renew(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html"), focused = document.activeElement?.id;
  for (const panel of fresh.querySelectorAll(".panel")) {
    // a drawing stays until there is a new one, and for good if nothing has changed
    if (views.has(panel.id)) {
      panel.append(...document.getElementById(panel.id).children);
      panel.style.minHeight = "";
    }
  }
  const gone = [...views.keys()].filter(id => !fresh.getElementById(id));
  gone.forEach(id => { views.get(id).finalize(); views.delete(id); });
  content.replaceChildren(...fresh.body.childNodes);
  enhance();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}
if ("live" in document.body.dataset) {
  let tag = null, wait = 5;
  const state = text => { document.getElementById("live").textContent = text; };
  const ended = () => document.getElementById("ended") ? "ended" : null;
  const refresh = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch("content", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
        if (answer.status === 200) { renew(await answer.text()); tag = answer.headers.get("ETag"); }
        wait = Number(answer.headers.get("Retry-After")) || wait;
        state(ended() ?? `live, ${new Date().toLocaleTimeString()}`);
      } catch { state("moebench watch has ended"); }
    }
    setTimeout(refresh, 1000 * wait);
  };
  setTimeout(refresh, 1000 * wait);
  state(ended() ?? "live");
}
