// The result grid and the larger view. Everything from the server is set as text, never as HTML.

import { Explanation } from "/static/explain.js";

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function moments(hit) {
  const segment = hit.start_s === undefined ? [] : [["segment", `${clock(hit.start_s)} to ${clock(hit.end_s)}`]];
  return hit.moment ? [["moment", `${clock(hit.moment.time_s)}, score ${hit.moment.score.toFixed(4)}`], ...segment] : [];
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join("\n");
  return value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
}

// An id of which the beginning, the folder, gives way where there is no room for all of it.
function named(id) {
  const box = element("span", "id");
  const text = element("bdi", "", id);
  text.dir = "ltr";
  box.append(text);
  return box;
}

// Such as 0:12.4 or 1:02:05.0, never later than the time itself.
export function clock(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function sized(thumbnail, size) {
  return `${thumbnail}${thumbnail.includes("?") ? "&" : "?"}size=${size}`;
}

function contentOf(hit) {
  return hit.thumbnail?.replace(/thumbnail(\?.*)?$/, "content");
}

export class Grid {
  // `call` asks the server, `onSimilar` is told of a hit whose like is wanted.
  constructor(call, onSimilar) {
    this.hits = [];
    this.at = -1;
    this.shown = null;
    this.isMissing = false;
    this.gallery = "";
    this.text = "";
    this.explanation = new Explanation(
      call,
      (isMap) => this.cover(isMap),
      () => !$("viewer-video").hidden && !$("viewer-video").paused,
    );
    this.list = $("grid");
    this.viewer = $("viewer");
    this.list.addEventListener("keydown", (event) => this.onGridKey(event));
    document.addEventListener("keydown", (event) => this.onViewerKey(event));
    this.viewer.addEventListener("click", (event) => {
      if (event.target === this.viewer) this.viewer.close();
    });
    this.viewer.addEventListener("close", () => {
      this.explanation.close();
      this.stop();
      this.buttons()[this.at]?.focus();
    });
    $("viewer-image").addEventListener("error", () => {
      this.isMissing = true;
      this.cover(!$("viewer-map").hidden);
    });
    $("close").addEventListener("click", () => this.viewer.close());
    $("previous").addEventListener("click", () => this.show(this.at - 1));
    $("next").addEventListener("click", () => this.show(this.at + 1));
    $("similar").addEventListener("click", () => {
      this.at = -1;
      this.viewer.close();
      this.list.focus(); // until there are others
      onSimilar(this.shown);
    });
  }

  buttons() {
    return [...this.list.querySelectorAll("button")];
  }

  // What the next hits are of; `text` is empty where they were not found by words.
  begin(gallery, text) {
    this.gallery = gallery;
    this.text = text;
  }

  // The keyboard goes on from here.
  focus(number) {
    (this.buttons()[number] ?? this.list).focus();
  }

  clear() {
    this.at = -1; // its event comes later, among other hits
    this.viewer.close(); // what it shows is found no more
    this.hits = [];
    if (this.list.contains(document.activeElement)) this.list.focus({ preventScroll: true });
    this.list.replaceChildren();
    this.list.classList.remove("waiting");
  }

  wait(count) {
    if (this.hits.length) {
      this.list.classList.add("waiting");
    } else {
      this.list.replaceChildren(...Array.from({ length: count }, () => element("li", "ghost")));
    }
  }

  add(hits) {
    for (const hit of hits) {
      const number = this.hits.push(hit) - 1;
      this.list.append(this.tile(hit, number));
    }
  }

  tile(hit, number) {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    const at = hit.moment ? `, at ${clock(hit.moment.time_s)}` : "";
    const told = hit.text?.slice(0, 200) ?? hit.id;
    button.setAttribute("aria-label", `Result ${number + 1}: ${told}${at}, score ${hit.score.toFixed(3)}`);
    button.title = hit.id;
    const caption = element("span", "caption");
    caption.append(named(hit.id), element("span", "score", hit.score.toFixed(3)));
    button.append(hit.thumbnail ? this.preview(hit) : this.words(hit), caption);
    if (hit.moment) button.append(element("span", "time", clock(hit.moment.time_s)));
    button.addEventListener("click", () => this.show(number));
    item.append(button);
    return item;
  }

  preview(hit) {
    const image = element("img");
    image.alt = "";
    image.loading = "lazy";
    image.decoding = "async";
    image.addEventListener("error", () => image.replaceWith(element("span", "blank", "no preview")));
    image.src = sized(hit.thumbnail, 320);
    return image;
  }

  words(hit) {
    const box = element("span", "words");
    box.append(element("span", "lines", hit.text));
    return box;
  }

  show(number) {
    const hit = this.hits[number];
    if (!hit) return;
    this.at = number;
    this.shown = hit;
    this.isMissing = false;
    this.explanation.offer(hit, this.gallery, this.text);
    this.stage(hit);
    $("viewer-id").textContent = hit.id;
    $("original").hidden = !hit.thumbnail;
    if (hit.thumbnail) $("original").href = contentOf(hit);
    $("previous").setAttribute("aria-disabled", String(number === 0)); // it keeps the focus
    $("next").setAttribute("aria-disabled", String(number === this.hits.length - 1));
    const facts = [["score", hit.score.toFixed(4)], ["place", number + 1], ...moments(hit), ...Object.entries(hit.metadata ?? {})];
    $("viewer-facts").replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", plain(value))]),
    );
    const opens = !this.viewer.open;
    if (opens) this.viewer.showModal();
    const isLost = !this.viewer.contains(document.activeElement); // it was on a word that is gone
    if (isLost && !opens && this.explanation.isComing) $("explain").focus(); // it passes it on to the word
    else if (opens || isLost) $("similar").focus(); // a video would take the keys
  }

  stage(hit) {
    const image = $("viewer-image");
    const video = $("viewer-video");
    this.stop();
    $("viewer-text").hidden = hit.text === undefined;
    $("viewer-text").textContent = hit.text ?? "";
    if (hit.moment) {
      video.poster = sized(hit.thumbnail, 1024);
      video.src = `${contentOf(hit)}#t=${hit.moment.time_s}`;
      video.setAttribute("aria-label", hit.id);
    } else if (hit.thumbnail) {
      image.alt = hit.id;
      image.src = sized(hit.thumbnail, 1024);
    }
  }

  // A map takes the place of the picture or the video.
  cover(isMap) {
    const hit = this.shown;
    if (isMap) $("viewer-video").pause();
    $("viewer-image").hidden = isMap || this.isMissing || !hit?.thumbnail || Boolean(hit.moment);
    $("viewer-missing").hidden = isMap || !this.isMissing;
    $("viewer-video").hidden = isMap || !hit?.moment;
  }

  stop() {
    const video = $("viewer-video");
    if (!video.hasAttribute("src")) return;
    video.pause();
    video.removeAttribute("src");
    video.removeAttribute("poster");
    video.load();
  }

  onViewerKey(event) {
    if (!this.viewer.open || event.target === $("viewer-video")) return; // its own keys wind and rewind
    if (event.key === "ArrowLeft") this.show(this.at - 1);
    if (event.key === "ArrowRight") this.show(this.at + 1);
  }

  onGridKey(event) {
    const buttons = this.buttons();
    const at = buttons.indexOf(document.activeElement);
    const top = buttons[0]?.offsetTop;
    const columns = buttons.filter((button) => button.offsetTop === top).length || 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (at < 0 || step === undefined || !buttons[at + step]) return;
    event.preventDefault();
    buttons[at + step].focus();
  }
}
