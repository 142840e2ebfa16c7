// Where the words of a search are in one of its pictures: a map for each word, drawn by the server.

const $ = (id) => document.getElementById(id);

function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

export class Explanation {
  // `onMap` is told whether a map is shown in place of the picture.
  constructor(call, onMap) {
    this.call = call;
    this.onMap = onMap;
    this.asked = null;
    this.drawn = null;
    this.maps = [];
    $("explain").addEventListener("click", () => this.look());
  }

  // For one hit of a search; without words there is nothing to look for.
  offer(hit, gallery, text) {
    this.close();
    this.asked = { text, gallery, item_id: hit.id, overlay: true };
    if (hit.moment) this.asked.time_s = hit.moment.time_s;
    $("explain").hidden = !text || !hit.thumbnail;
  }

  close() {
    this.drawn?.abort();
    this.drawn = null;
    this.maps.forEach((map) => URL.revokeObjectURL(map.url));
    this.maps = [];
    this.show(-1);
    this.wait(false);
    $("words").replaceChildren();
    $("explain-status").textContent = "";
  }

  // It keeps the focus meanwhile, so that the keys of the viewer go on working.
  wait(isAtWork) {
    $("explain").setAttribute("aria-disabled", String(isAtWork));
  }

  async look() {
    if (this.drawn) return;
    const drawn = new AbortController();
    this.drawn = drawn;
    this.wait(true);
    $("explain-status").textContent = "Looking for each word…";
    let answer;
    try {
      answer = await this.call("/v1/explain", {
        method: "POST",
        body: JSON.stringify(this.asked),
        headers: { "Content-Type": "application/json" },
        signal: drawn.signal,
      });
    } catch (error) {
      if (drawn.signal.aborted) return;
      this.drawn = null;
      this.wait(false);
      $("explain-status").textContent = error.message;
      return;
    }
    if (drawn.signal.aborted) return; // another hit is shown
    $("explain").hidden = true;
    this.list(answer.words);
  }

  list(words) {
    this.maps = words.map(({ word, overlay }) => ({ word, url: URL.createObjectURL(blobOf(overlay)) }));
    $("words").replaceChildren(...words.map((word, number) => this.button(word, number)));
    const similarities = words.map((word) => word.similarity);
    this.show(similarities.indexOf(Math.max(...similarities)));
    $("words").children[this.at]?.focus();
  }

  button({ word, similarity }, number) {
    const button = document.createElement("button");
    button.type = "button";
    const score = document.createElement("small");
    score.textContent = similarity.toFixed(2);
    button.append(word, " ", score);
    button.addEventListener("click", () => this.show(number === this.at ? -1 : number));
    return button;
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
      $("explain-status").textContent = `Warm is where “${map.word}” fits best; its number says how well.`;
    } else {
      $("viewer-map").removeAttribute("src");
      $("explain-status").textContent = this.maps.length ? "Choose a word to see where it is." : "";
    }
    this.onMap(Boolean(map));
  }
}
