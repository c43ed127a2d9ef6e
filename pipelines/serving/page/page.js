"use strict";
// The page of the search service. Text of documents goes into text nodes only.

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const WORD = /[\p{L}\p{N}_]{2,}/gu;
const SHOWN_TOPICS = 12;
const SHOWN_COSTS = 4;
const SNIPPET = 240; // characters of a text that an index keeps

let facts = null;
let shown = null; // the answer that is on the page
let latest = 0; // number of the latest request: an earlier answer that comes late is dropped

// ---- talking to the service

class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const options = body ? { method: "POST", body: JSON.stringify(body), headers } : { headers };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refusal("the service does not answer; is it still running?", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(answer.error || `the service answered ${response.status}`, response.status);
  return answer;
}

// ---- what is asked for, kept in the address so that going back works

function wanted() {
  const given = new URLSearchParams(location.hash.slice(1));
  return {
    text: given.get("text") || "",
    id: given.get("id") || "",
    rank: given.get("rank") === "hamming" ? "hamming" : "log-odds",
    filter: given.get("filter") || "",
    k: Number(given.get("k")) || 10,
  };
}

function want(changes) {
  const next = { ...wanted(), ...changes };
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(next)) {
    const usual = { rank: "log-odds", k: 10 }[name];
    if (value && value !== usual) given.set(name, value);
  }
  const hash = `#${given}`;
  if (hash === (location.hash || "#")) show();
  else location.hash = hash;
}

function typed() {
  return { text: at("text").value.trim(), rank: rank(), filter: at("filter").value.trim(), k: Number(at("k").value) };
}

const rank = () => document.querySelector("input[name=rank]:checked").value;

async function show() {
  const query = wanted();
  at("text").value = query.text;
  at("filter").value = query.filter;
  at("k").value = String(query.k);
  document.querySelector(`input[name=rank][value=${query.rank}]`).checked = true;
  at("no-filter").hidden = !query.filter;
  at("filter").parentElement.classList.toggle("on", Boolean(query.filter));
  at("like").hidden = !query.id;
  at("like-id").textContent = query.id;
  at("problem").hidden = true;
  document.title = query.id || query.text ? `${query.id || query.text} · latentbits` : "latentbits";
  if (!query.id && !query.text) return showStart();
  at("start").hidden = true;
  const mine = ++latest;
  document.body.classList.add("busy");
  const body = { rank: query.rank, k: query.k, explain: true };
  if (query.filter) body.filter = query.filter;
  body[query.id ? "id" : "text"] = query.id || query.text;
  try {
    const began = performance.now();
    const answer = await ask("search", body);
    if (mine !== latest) return undefined;
    if (shown && shown.query !== answer.query) scrollTo(0, 0);
    showAnswer(answer, performance.now() - began);
  } catch (error) {
    if (mine === latest) showProblem(error);
  } finally {
    if (mine === latest) document.body.classList.remove("busy");
  }
  return undefined;
}

function showStart() {
  latest++;
  shown = null;
  document.body.classList.remove("busy");
  at("hits").replaceChildren();
  at("status").textContent = "";
  at("start").hidden = !(facts && facts.topics.length);
}

function showProblem(error) {
  at("hits").replaceChildren();
  at("status").textContent = "";
  at("start").hidden = true;
  const needsToken = error.status === 401;
  at("token").hidden = !needsToken;
  at("problem").hidden = needsToken && !sessionStorage.getItem("token");
  at("problem-text").textContent = error.message;
  at("retry").hidden = ![0, 429, 503, 504].includes(error.status);
  if (needsToken) at("token-text").focus();
}

// ---- an answer

function showAnswer(answer, milliseconds) {
  shown = answer;
  at("token").hidden = true;
  const count = answer.hits.length;
  at("status").textContent =
    answer.message || (count ? `${count} ${count === 1 ? "hit" : "hits"} in ${Math.round(milliseconds)} ms` : nothing());
  at("start").hidden = !(answer.message && facts.topics.length);
  at("hits").replaceChildren(...answer.hits.map((hit) => hitItem(hit, answer)));
}

const nothing = () => (wanted().filter ? "No document meets this filter." : "No document was found.");

function hitItem(hit, answer) {
  const share = agreement(hit, answer);
  const item = make("li", "hit", { tabIndex: -1 });
  item.dataset.id = hit.id;
  const bar = make("span", "bar", { title: `${percent(share)} of the query's bits agree, by weight; half is chance` });
  const fill = make("i");
  fill.style.width = `${Math.max(3, 200 * (share - 0.5))}%`;
  bar.append(fill);
  const words = make("span", "", {}, `${percent(share)} · ${off(hit.distance)}`);
  const score = make("span", "score", { title: `score ${hit.score.toFixed(2)}` }, bar, words);
  const head = make("div", "hit-head", {}, make("h3", "", {}, ...breakable(hit.id)), score);
  const text = make("p", "text");
  text.append(...marked(beginning(hit.text || "", SNIPPET), new Set(answer.words || []), new Set(topicWords(hit.component))));
  item.append(head, text, tags(hit), acts(hit, answer));
  return item;
}

// The share of the query's bits that agree, each weighed by its log-odds, or all alike in the ranking by Hamming.
function agreement(hit, answer) {
  if (!answer.log_odds || answer.rank === "hamming") return 1 - hit.distance / (answer.code.length * 4);
  const differs = differing(answer.code, hit.code);
  const weights = answer.log_odds.map(weight);
  const lost = weights.reduce((sum, one, bit) => sum + (differs[bit] ? one : 0), 0);
  return 1 - lost / weights.reduce((sum, one) => sum + one, 0);
}

const weight = (logOdds) => Math.min(10, Math.abs(logOdds));
const percent = (share) => `${Math.round(100 * share)} %`;

const off = (distance) => (distance === 0 ? "same code" : `${distance} ${distance === 1 ? "bit" : "bits"} off`);

function unpacked(code) {
  const bits = [];
  for (let place = 0; place < code.length; place += 2) {
    const byte = parseInt(code.slice(place, place + 2), 16);
    for (let bit = 0; bit < 8; bit++) bits.push((byte >> bit) & 1);
  }
  return bits;
}

function differing(one, other) {
  const others = unpacked(other);
  return unpacked(one).map((bit, place) => bit !== others[place]);
}

function marked(text, asked, theme) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    const word = found[0].toLowerCase();
    const kind = asked.has(word) ? "mark" : theme.has(word) ? "span" : null;
    if (!kind) continue;
    parts.push(text.slice(end, found.index), make(kind, kind === "span" ? "theme" : "", {}, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

// An id, with places to break a line at.
function breakable(id) {
  return id.split(/(?<=[./:_-])/).flatMap((part, place) => (place ? [make("wbr"), part] : [part]));
}

// Up to the last whole word; the index keeps only so much of a text itself.
function beginning(text, most) {
  if (text.length < most) return text;
  return `${text.slice(0, most).replace(/\s+\S*$/, "")} …`;
}

const topicOf = (component) => facts && facts.topics.find((topic) => topic.component === component);
const topicWords = (component) => (topicOf(component) || { words: [] }).words;

function tags(hit) {
  const row = make("div", "tags");
  const words = topicWords(hit.component).slice(0, 4).join(" · ");
  if (hit.component !== null && hit.component !== undefined) {
    const name = make("b", "", {}, `Topic ${hit.component}`);
    const title = "The component of this document's code, and the words that it raises most";
    row.append(make("span", "tag topic", { title }, name, words ? ` ${words}` : ""));
  }
  for (const label of hit.labels || []) row.append(filterTag("labels", label, label));
  for (const [name, value] of Object.entries(hit.metadata || {}))
    if (value !== null && value !== "") row.append(filterTag(name, value, `${name}: ${value}`));
  return row;
}

function filterTag(column, value, words) {
  const condition = conditionOn(column, value);
  if (!condition) return make("span", "tag", {}, words);
  const button = make("button", "tag", { type: "button", title: `Show only hits with ${condition}` }, words);
  button.addEventListener("click", () => want({ filter: condition }));
  return button;
}

function conditionOn(column, value) {
  const known = facts && facts.filters.find((one) => one.name === column);
  if (!known) return null;
  const name = /^[\p{L}_][\p{L}\p{N}_.-]*$/u.test(column) ? column : `"${column}"`;
  const written = typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value);
  return `${name} = ${written}`;
}

function acts(hit, answer) {
  const row = make("div", "acts");
  const more = make("button", "quiet", { type: "button" }, "More like this");
  more.addEventListener("click", () => want({ id: hit.id, text: "" }));
  more.dataset.act = "more";
  row.append(more);
  row.append(opener("twins", "Near duplicates", (panel) => showTwins(panel, hit)));
  row.append(opener("bits", "Bits", (panel) => showBits(panel, hit, answer)));
  return row;
}

function opener(act, words, fill) {
  const button = make("button", "quiet", { type: "button" }, words);
  button.dataset.act = act;
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const item = button.closest(".hit");
    const there = item.querySelector(`.panel[data-act=${act}]`);
    button.setAttribute("aria-expanded", String(!there));
    if (there) {
      there.remove();
      return;
    }
    const panel = make("section", "panel");
    panel.dataset.act = act;
    panel.setAttribute("aria-label", words);
    item.append(panel);
    fill(panel);
  });
  return button;
}

// ---- near duplicates

async function showTwins(panel, hit) {
  const radius = Math.max(1, Math.round(hit.code.length / 8));
  panel.append(make("p", "soft", {}, "Looking…"));
  try {
    const found = await ask("search", { id: hit.id, rank: "hamming", k: 50 });
    const near = found.hits.filter((one) => one.distance <= radius);
    panel.replaceChildren(near.length ? twinList(near) : make("p", "soft", {}, `No other document within ${radius} bits.`));
  } catch (error) {
    panel.replaceChildren(make("p", "", {}, error.message));
  }
}

function twinList(near) {
  const list = make("ul", "twins");
  for (const one of near) {
    list.append(make("li", "", {}, make("b", "", {}, ...breakable(one.id)), make("span", "", {}, `${off(one.distance)} · ${beginning(one.text || "", 120)}`)));
  }
  return list;
}

// ---- the bits of a query beside those of a hit

function showBits(panel, hit, answer) {
  const query = unpacked(answer.code);
  const other = unpacked(hit.code);
  const weights = answer.log_odds.map(weight);
  const most = Math.max(...weights);
  const agreeing = query.filter((bit, place) => bit === other[place]).length;
  const grid = make("div", "bits");
  grid.setAttribute("role", "img");
  grid.setAttribute("aria-label", `${agreeing} of ${query.length} bits agree`);
  grid.append(...query.map((bit, place) => bitColumn(place, bit, other[place], answer.log_odds[place], weights[place] / most)));
  const by = answer.rank === "hamming" ? "" : `, ${percent(agreement(hit, answer))} of their weight`;
  const key = make("ul", "key", {}, make("li", "", {}, make("i"), "weight of a bit that agrees"),
    make("li", "", {}, make("i", "bad"), "of one that differs"),
    make("li", "", {}, make("i", "full"), "above: the query's bits; below: the hit's"));
  panel.append(make("p", "", {}, `${agreeing} of ${query.length} bits agree${by}.`), grid, key);
  const costs = costliest(query, other, weights);
  if (costs.length) panel.append(make("p", "soft", {}, "What sets them apart most:"), costList(costs, query));
}

function bitColumn(place, mine, theirs, logOdds, height) {
  const words = bitWords(place);
  const title = `bit ${place}: query ${mine}, hit ${theirs}, log-odds ${logOdds.toFixed(2)}${words ? `\n${words}` : ""}`;
  const column = make("span", mine === theirs ? "bit" : "bit differs", { title });
  const bar = make("span", "weight");
  bar.style.height = `${Math.round(100 * height)}%`;
  column.append(bar, make("span", mine ? "cell one" : "cell"), make("span", theirs ? "cell one" : "cell"));
  return column;
}

function costliest(query, other, weights) {
  const places = query.map((_, place) => place).filter((place) => query[place] !== other[place]);
  return places.sort((one, two) => weights[two] - weights[one]).slice(0, SHOWN_COSTS);
}

function costList(places, query) {
  const list = make("ul", "costs");
  for (const place of places) {
    const poles = facts && facts.bit_words && facts.bit_words[place];
    const sides = poles && (query[place] ? [poles.raised, poles.lowered] : [poles.lowered, poles.raised]);
    const words = sides ? `query: ${sides[0].join(", ")} — hit: ${sides[1].join(", ")}` : `query ${query[place]}, hit ${1 - query[place]}`;
    list.append(make("li", "", {}, make("b", "", {}, `bit ${place}`), make("span", "", {}, words)));
  }
  return list;
}

function bitWords(place) {
  const poles = facts && facts.bit_words && facts.bit_words[place];
  return poles ? `1: ${poles.raised.join(", ")}\n0: ${poles.lowered.join(", ")}` : "";
}

// ---- what the index is

async function loadFacts() {
  try {
    facts = await ask("facts");
  } catch (error) {
    at("facts-button").textContent = "";
    if (error.status === 401 || !wanted().text) showProblem(error);
    return;
  }
  at("token").hidden = true;
  at("facts-button").textContent = `${number.format(facts.documents)} documents · ${facts.bits} bits`;
  const examples = facts.filters.map(example).filter(Boolean);
  at("columns").replaceChildren(...examples.map((value) => make("option", "", { value })));
  at("filter").placeholder = examples.length ? `Filter: ${examples.at(-1)}` : "Filter";
  at("topics").replaceChildren(...[...facts.topics].sort((a, b) => b.share - a.share).slice(0, SHOWN_TOPICS).map(topicItem));
  showFacts();
}

// A condition that the first document meets; on its text or id it would be of no use.
function example(one) {
  const value = Array.isArray(one.example) ? one.example[0] : one.example;
  const useful = !["id", "text"].includes(one.name) && value !== null && value !== undefined;
  return useful ? conditionOn(one.name, value) : null;
}

function topicItem(topic) {
  const largest = Math.max(...facts.topics.map((one) => one.share));
  const bar = make("span", "share");
  bar.style.width = `${Math.max(2, (100 * topic.share) / largest)}%`;
  const title = `Topic ${topic.component}, ${percent(topic.share)} of the model's prior`;
  const button = make("button", "", { type: "button", title }, bar, topic.words.slice(0, 5).join(" · "));
  button.addEventListener("click", () => want({ text: topic.words.slice(0, 5).join(" "), id: "" }));
  return make("li", "", {}, button);
}

function showFacts() {
  const { model } = facts;
  const rows = [
    ["Documents", number.format(facts.documents)],
    ["Bits of a code", facts.bits],
    ["On disk", `${size(facts.bytes)}, ${Math.round(facts.bytes / Math.max(1, facts.documents))} bytes a document`],
    ["Version", `${facts.version}, ${facts.segments} ${facts.segments === 1 ? "segment" : "segments"}`],
    ["Model", model.fingerprint],
    ["Encoder, latent", `${model.encoder}, ${model.latent.replaceAll("_", " ")}`],
    ["Topics", model.components || "none"],
    ["Vocabulary", `${number.format(model.vocabulary)} words`],
  ];
  const health = make("dl", "", { id: "health" });
  at("facts").replaceChildren(make("h2", "", {}, "Index and model"), definitions(make("dl"), rows),
    make("h2", "", {}, "Health of the codes"), health);
}

async function loadHealth() {
  if (!facts || at("health").childElementCount) return;
  at("health").append(make("dd", "", {}, "Measuring…"));
  try {
    const found = await ask("facts/codes");
    const plain = (value) => (value === null ? "–" : number.format(Number(value.toPrecision(3))));
    at("health").replaceChildren();
    definitions(at("health"), [
      ["Codes measured", number.format(found.documents)],
      ["Distinct codes", number.format(found.distinct_codes)],
      ["Effective bits", plain(found.effective_bits)],
      ["Dead bits", found.dead_bits],
      ["Mean correlation of bits", plain(found.correlation_mean)],
      ["Topics in use", found.components_used],
    ]);
  } catch (error) {
    at("health").replaceChildren(make("dd", "", {}, error.message));
  }
}

function definitions(list, rows) {
  for (const [name, value] of rows) list.append(make("div", "", {}, make("dt", "", {}, name), make("dd", "", {}, String(value))));
  return list;
}

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${number.format(Number((bytes / 1000 ** step).toPrecision(3)))} ${units[step]}`;
}

// ---- elements and events

function make(tag, kind = "", properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

function move(step) {
  const items = [...document.querySelectorAll(".hit")];
  if (!items.length) return;
  const now = items.indexOf(document.activeElement.closest(".hit"));
  const next = now + step;
  if (next < 0) at("text").focus();
  else items[Math.min(next, items.length - 1)].focus();
}

function act(name) {
  const item = document.activeElement.closest(".hit");
  const button = item && item.querySelector(`.acts [data-act=${name}]`);
  if (button) button.click();
  return Boolean(button);
}

const KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  "/": () => at("text").select(),
  Enter: () => document.activeElement.classList.contains("hit") && act("more"),
  m: () => act("more"),
  b: () => act("bits"),
  d: () => act("twins"),
  Escape: () => (wanted().id ? history.back() : at("text").select()),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], input[type=text], input[type=password], select");
  const inside = event.target.matches("input[type=radio]");
  const allowed = !typing || event.key === "Escape" || (event.target.id === "text" && event.key === "ArrowDown");
  if (!KEYS[event.key] || !allowed || inside || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && !event.target.classList.contains("hit")) return;
  event.preventDefault();
  KEYS[event.key]();
});

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = typed();
  if (!given.text && wanted().id) delete given.text;
  want(given.text ? { ...given, id: "" } : given);
  if (given.text && matchMedia("(hover: none)").matches) at("text").blur();
});
for (const name of ["rank", "k"])
  for (const input of document.querySelectorAll(`[name=${name}]`))
    input.addEventListener("change", () => want({ rank: rank(), k: Number(at("k").value) }));
at("filter").addEventListener("change", () => wanted().filter !== at("filter").value.trim() && want({ filter: at("filter").value.trim() }));
at("no-filter").addEventListener("click", () => want({ filter: "" }));
at("like-end").addEventListener("click", () => history.back());
at("retry").addEventListener("click", () => (facts ? show() : start()));
at("home").addEventListener("click", (event) => {
  event.preventDefault();
  want({ text: "", id: "", filter: "" });
  at("text").focus();
});
at("facts-button").addEventListener("click", () => {
  const open = at("facts").hidden;
  at("facts").hidden = !open;
  at("facts-button").setAttribute("aria-expanded", String(open));
  if (open) loadHealth();
});
at("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token-text").value.trim());
  at("token-text").value = "";
  start();
});
addEventListener("hashchange", show);

async function start() {
  at("problem").hidden = true;
  await loadFacts();
  if (facts) await show();
}

start();
