// Where the words of a search are in one of its pictures: a map for each word, drawn by the server.

const $ = (id) => document.getElementById(id);

// Words that are everywhere and nowhere in a picture: what they score says nothing, and a map of one of them
// comes first only alone.
const PLAIN = new Set(
  "a an the and or of in on at to with by for from is are it its it's his her their this that that's there's as near".split(" "),
);

function isPlain({ word }) {
  return PLAIN.has(word.toLowerCase());
}

const PAUSE_MS = 250; // before the maps of the next hit are asked for: who leafs through hits needs none

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

export class Explanation {
  // `onMap` is told whether a map is shown in place of the picture, `isWatched` tells whether a video plays there.
  constructor(call, onMap, isWatched) {
    this.call = call;
    this.onMap = onMap;
    this.isWatched = isWatched;
    this.asked = null;
    this.drawn = null;
    this.maps = [];
    this.at = -1;
    this.wanted = null; // the number of the word whose map is looked at, to be shown on the next hit as well
    this.timer = 0;
    $("explain").addEventListener("click", () => this.look());
  }

  // For one hit of a search; without words there is nothing to look for.
  offer(hit, gallery, text) {
    this.drop();
    if (this.asked?.text !== text) this.wanted = null; // other words
    this.asked = { text, gallery, item_id: hit.id, overlay: true };
    if (hit.moment) this.asked.time_s = hit.moment.time_s;
    const isOffered = Boolean(hit.thumbnail) && /[\p{L}\p{N}]/u.test(text);
    $("explain").hidden = !isOffered;
    if (isOffered && this.wanted !== null) this.timer = setTimeout(() => this.look(), PAUSE_MS);
  }

  // Whether maps are about to come by themselves.
  get isComing() {
    return this.timer !== 0;
  }

  close() {
    this.wanted = null;
    this.drop();
  }

  drop() {
    this.stopTimer();
    this.drawn?.abort();
    this.drawn = null;
    this.maps.forEach((map) => URL.revokeObjectURL(map.url));
    this.maps = [];
    this.show(-1);
    this.wait(false);
    $("words").replaceChildren();
    $("explain-status").textContent = "";
  }

  stopTimer() {
    clearTimeout(this.timer);
    this.timer = 0;
  }

  // It keeps the focus meanwhile, so that the keys of the viewer go on working.
  wait(isAtWork) {
    $("explain").setAttribute("aria-disabled", String(isAtWork));
  }

  async look() {
    if (this.drawn) return;
    this.stopTimer();
    const drawn = new AbortController();
    this.drawn = drawn;
    this.wait(true);
    $("explain-status").textContent = "Looking for each word…";
    try {
      const answer = await this.call("/v1/explain", {
        method: "POST",
        body: JSON.stringify(this.asked),
        headers: { "Content-Type": "application/json" },
        signal: drawn.signal,
      });
      if (!drawn.signal.aborted) this.list(answer.words); // else another hit is shown
    } catch (error) {
      if (drawn.signal.aborted) return;
      this.drawn = null;
      this.wait(false);
      $("explain-status").textContent = error.message;
    }
  }

  list(words) {
    this.maps = words.map(({ word, overlay }) => ({ word, url: URL.createObjectURL(blobOf(overlay)) }));
    $("words").replaceChildren(...words.map((word, number) => this.button(word, number)));
    const focused = document.activeElement;
    const hadFocus = focused === $("explain") || focused === $("viewer-video");
    if (this.isWatched()) this.show(-1); // what plays is not taken away
    else this.choose(this.wanted ?? this.best(words));
    $("explain").hidden = true;
    if (hadFocus && (focused === $("explain") || this.at >= 0)) $("words").children[Math.max(this.at, 0)].focus();
  }

  // The number of the word that fits best; of plain words only if there are no others.
  best(words) {
    const wanted = words.some((word) => !isPlain(word)) ? words.filter((word) => !isPlain(word)) : words;
    return words.indexOf(wanted.reduce((one, other) => (other.similarity > one.similarity ? other : one)));
  }

  button({ word, similarity }, number) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(word);
    if (!isPlain({ word })) {
      const score = document.createElement("small");
      score.textContent = similarity.toFixed(2);
      button.append(" ", score);
    }
    button.addEventListener("click", () => this.choose(number === this.at ? -1 : number));
    return button;
  }

  choose(number) {
    this.wanted = number < 0 ? null : number;
    this.show(number);
  }

  // The map of one word, or the picture for -1.
  show(number) {
    this.at = number;
    const map = this.maps[number];
    [...$("words").children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === number)));
    $("viewer-map").hidden = !map;
    if (map) {
      $("viewer-map").src = map.url;
      $("viewer-map").alt = `Where “${map.word}” fits best`;
      const rest = isPlain(map) ? "" : "; its number says how well";
      $("explain-status").textContent = `Warm is where “${map.word}” fits best, however little${rest}.`;
    } else {
      $("viewer-map").removeAttribute("src");
      $("explain-status").textContent = this.maps.length ? "Choose a word to see where it fits best." : "";
    }
    this.onMap(Boolean(map));
  }
}
