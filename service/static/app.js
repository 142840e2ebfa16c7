// The page: what is being looked for lives in the address (#g=gallery&q=words or &like=id), so that
// back, reload and sharing work. Pictures of one's own are kept, in this page, for back and forward.

import { Grid } from "/static/grid.js";

const PAGE = Number(document.documentElement.dataset.hits); // as many as the server gives
const EXAMPLES = ["a dog running through snow", "people at the beach", "something red"];
const $ = (id) => document.getElementById(id);
const state = { gallery: "", galleries: [], query: null, picture: "", early: null, shown: 0, asked: 0, given: 0 };
const pictures = new Map(); // that were searched with, the last few; the history says which
const KEPT = 20;
const grid = new Grid(call, (hit) => go({ like: hit.id }));

const NAMES = { image: ["picture", "pictures"], video: ["video", "videos"], text: ["text", "texts"] };

function current() {
  return state.galleries.find((gallery) => gallery.name === state.gallery);
}

function describe(gallery) {
  const [one, many] = NAMES[gallery.modality] ?? ["item", "items"];
  return `${gallery.count.toLocaleString()} ${gallery.count === 1 ? one : many} in ${gallery.name}`;
}

function say(text) {
  $("status").textContent = text;
}

function tell(title, text, { bad = false, actions = [] } = {}) {
  const box = $("message");
  const wasHere = isFocusLost() || box.contains(document.activeElement);
  box.className = bad ? "message bad" : "message";
  const heading = document.createElement("h2");
  heading.textContent = title;
  const body = document.createElement("p");
  body.textContent = text;
  const buttons = actions.map(([label, run]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", run);
    return button;
  });
  box.replaceChildren(heading, body, ...buttons);
  box.hidden = false;
  if (bad && wasHere) buttons[0]?.focus();
}

// Hide what may have the keyboard; until there are hits, the place for them has it.
function leave(place) {
  if (place.contains(document.activeElement)) $("grid").focus({ preventScroll: true });
  place.hidden = true;
}

// Whether the keyboard is nowhere, as after a button that is gone.
function isFocusLost() {
  return document.activeElement === $("grid");
}

function file() {
  return pictures.get(state.picture) ?? null;
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Check that it is running, then try again.");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  if (answer.ok) throw new Error("The answer did not come whole. Try again.");
  const error = new Error(body?.error?.message ?? `The server answered ${answer.status}.`);
  error.code = body?.error?.code;
  error.isFinal = answer.status >= 400 && answer.status < 500 && ![408, 429].includes(answer.status);
  throw error;
}

function request(offset) {
  const path = `/v1/galleries/${encodeURIComponent(state.gallery)}/search`;
  if (file()) {
    const form = new FormData();
    form.append("file", file());
    form.append("k", PAGE);
    form.append("offset", offset);
    return call(`${path}/upload`, { method: "POST", body: form });
  }
  const body = JSON.stringify({ query: state.query, k: PAGE, offset });
  return call(path, { method: "POST", body, headers: { "Content-Type": "application/json" } });
}

async function search(offset = 0) {
  const asked = ++state.asked;
  const words = file() || state.query.item_id ? "" : state.query;
  const gallery = state.gallery;
  leave($("message"));
  leave($("more"));
  say("Searching…");
  if (offset === 0) grid.wait(12);
  try {
    const answer = await request(offset);
    if (asked !== state.asked) return; // a newer search is on its way
    if (offset === 0) {
      grid.clear();
      grid.begin(gallery, answer.warnings ? "" : words); // where they are cut, none can be looked for
    }
    grid.add(answer.hits);
    state.shown = offset + answer.hits.length;
    report(answer);
    if (isFocusLost()) grid.focus(offset);
  } catch (error) {
    if (asked !== state.asked) return;
    if (offset === 0) grid.clear();
    say("");
    const message = file() ? error.message.replace(/^image /, () => `${file().name} `) : error.message;
    tell("That did not work", message, { bad: true, actions: [cure(error, offset)] });
  }
}

function write() {
  $("query").focus();
  $("query").select();
}

// What may help: the same again only where the server might answer otherwise.
function cure(error, offset) {
  if (error.code === "gallery_not_found") return ["Which galleries are there?", start];
  if (!error.isFinal) return ["Try again", () => search(offset)];
  if (file()) return ["Choose another picture", () => $("file").click()];
  return ["Change the search", write];
}

function report(answer) {
  const gallery = current();
  const full = answer.hits.length === PAGE && state.shown < gallery.count;
  const told = (answer.warnings ?? []).map((warning) => ` · ${warning.message.replace(/^query /, "This ")}`);
  say(`The best ${state.shown} of ${describe(gallery)} · ${answer.took_ms.total.toFixed(0)} ms${told.join("")}`);
  $("more").hidden = !full;
  if (state.shown === 0) tell("Nothing found", "Try other words.");
}

function chip(source, label) {
  $("chip").hidden = !label;
  $("chip-label").textContent = label ?? "";
  const old = $("chip-image").src;
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
  $("chip-image").hidden = !source;
  if (source) $("chip-image").src = source;
  else $("chip-image").removeAttribute("src");
}

function itemPath(id) {
  const plain = !id.split("/").some((part) => ["", ".", ".."].includes(part)) && !/(^|\/)(thumbnail|content)$/.test(id);
  const encoded = plain ? id.split("/").map(encodeURIComponent).join("/") : encodeURIComponent(id);
  return `/v1/galleries/${encodeURIComponent(state.gallery)}/items/${encoded}`;
}

function searchWith(picture) {
  if (!picture.type.startsWith("image/")) {
    if (file()) go({}); // what the picture before found is not of this one
    tell("That is not a picture", `${picture.name || "The file"} is not a picture; JPEG, PNG, WebP, GIF, BMP and TIFF are accepted.`, { bad: true });
    return;
  }
  const name = `${performance.timeOrigin}-${state.given++}`; // the history outlives the page
  pictures.set(name, picture);
  if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  go({ picture: name });
}

// A picture of one's own has no place in an address, but one in the history.
function go({ text, like, picture = "", gallery = state.gallery }) {
  if (!state.galleries.length) {
    if (text || like || picture) state.early = { text, like, picture }; // for when they have come
    return;
  }
  const parts = new URLSearchParams({ g: gallery });
  if (text) parts.set("q", text);
  if (like) parts.set("like", like);
  const hash = `#${parts}`;
  if (hash !== location.hash || picture !== state.picture) history.pushState({ picture }, "", hash);
  follow();
}

// What the words describe, in this gallery.
function nameField() {
  const [one] = NAMES[current().modality] ?? ["item"];
  $("query").placeholder = `Describe a ${one}, or drop a picture here`;
  $("query-label").textContent = `Describe a ${one}`;
}

function follow() {
  if (!state.galleries.length) return;
  const parts = new URLSearchParams(location.hash.slice(1));
  const names = state.galleries.map((gallery) => gallery.name);
  const named = parts.get("g") || null;
  state.gallery = names.includes(named) ? named : names[0];
  $("gallery").value = state.gallery;
  const isMissing = named !== null && named !== state.gallery;
  state.picture = pictures.has(history.state?.picture) ? history.state.picture : "";
  nameField();
  const text = parts.get("q") ?? "";
  const like = parts.get("like");
  $("query").value = text;
  state.query = like ? { item_id: like } : text;
  if (file()) {
    chip(URL.createObjectURL(file()), file().name || "pasted picture");
  } else {
    const shown = like && !isMissing && current().modality !== "text"; // texts have no thumbnail
    chip(shown ? `${itemPath(like)}/thumbnail?size=64` : null, like && `like ${like}`);
  }
  const title = file() ? "Picture search" : text || (like && `Like ${like}`) || "Search";
  document.title = `${title} · COTS Retrieval`;
  if (isMissing) {
    state.query = ""; // nothing of it is in another gallery
    missing(named, text);
  } else if (file() || like || text.trim()) search();
  else welcome();
}

function empty() {
  state.asked += 1; // what is on its way is not wanted any more
  grid.clear();
  leave($("more"));
  say("");
}

// A link to a gallery that is not here, or not any more.
function missing(named, text) {
  empty();
  const verb = file() || text.trim() ? "Search" : "Go to";
  const actions = state.galleries.slice(0, 5).map(({ name }) => [`${verb} ${name}`, () => go({ text, picture: state.picture, gallery: name })]);
  tell("No such gallery", `There is no gallery ${named}.`, { bad: true, actions });
}

function welcome() {
  empty();
  say(describe(current()));
  const [one, many] = NAMES[current().modality] ?? ["item", "items"];
  const like = current().modality === "image" ? "similar ones" : `${many} that fit it`;
  tell(`Find a ${one} by words`, `Describe what you look for, or drop, paste or choose a picture to find ${like}.`, {
    actions: EXAMPLES.map((example) => [example, () => go({ text: example })]),
  });
}

function listen() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("query").value.trim();
    if (text) go({ text });
    else if (file() || state.query?.item_id) follow();
    else go({});
  });
  $("more").addEventListener("click", () => search(state.shown));
  $("pick").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) searchWith($("file").files[0]);
    $("file").value = "";
  });
  $("chip-image").addEventListener("error", () => ($("chip-image").hidden = true));
  $("chip-remove").addEventListener("click", () => {
    $("query").focus();
    go({});
  });
  $("gallery").addEventListener("change", () => {
    state.gallery = $("gallery").value;
    if (file()) go({ picture: state.picture }); // not words that were only typed
    else go({ text: $("query").value.trim() });
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is that of the search
    grid.focus(0);
  });
  window.addEventListener("popstate", follow); // back, forward, and an address that was typed
  window.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) searchWith(file);
  });
  window.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.key !== "/" || typing || $("viewer").open) return;
    event.preventDefault();
    write();
  });
  listenForDrops();
}

function listenForDrops() {
  const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) $("drop").hidden = true;
  });
  window.addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) searchWith(event.dataTransfer.files[0]);
  });
}

async function start() {
  const asked = ++state.asked; // a search on its way is of galleries that may be gone
  say("Loading…");
  try {
    const found = (await call("/v1/galleries")).galleries;
    if (asked !== state.asked) return;
    state.galleries = found;
  } catch (error) {
    if (asked !== state.asked) return;
    say("");
    tell("The galleries could not be loaded", error.message, { bad: true, actions: [["Try again", start]] });
    return;
  }
  if (!state.galleries.length) {
    say("");
    tell("There is no gallery yet", "Build one with “cots index build”; the server finds it by itself.", { actions: [["Look again", start]] });
    return;
  }
  $("gallery").replaceChildren(...state.galleries.map((gallery) => new Option(gallery.name, gallery.name)));
  $("gallery-label").hidden = state.galleries.length < 2;
  leave($("message"));
  const typed = $("query").value;
  const { early } = state;
  state.early = null;
  if (early) go({ ...early, gallery: new URLSearchParams(location.hash.slice(1)).get("g") || state.galleries[0].name });
  else follow();
  if (typed) $("query").value = typed; // who types need not wait
}

listen();
start();
