// The result grid and the larger view. Everything from the server is set as text, never as HTML.

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join("\n");
  return value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
}

export class Grid {
  constructor(onSimilar) {
    this.hits = [];
    this.at = -1;
    this.list = $("grid");
    this.viewer = $("viewer");
    this.list.addEventListener("keydown", (event) => this.onGridKey(event));
    this.viewer.addEventListener("keydown", (event) => this.onViewerKey(event));
    this.viewer.addEventListener("click", (event) => {
      if (event.target === this.viewer) this.viewer.close();
    });
    this.viewer.addEventListener("close", () => this.buttons()[this.at]?.focus());
    $("close").addEventListener("click", () => this.viewer.close());
    $("previous").addEventListener("click", () => this.show(this.at - 1));
    $("next").addEventListener("click", () => this.show(this.at + 1));
    $("similar").addEventListener("click", () => {
      const hit = this.hits[this.at];
      this.at = -1;
      this.viewer.close();
      onSimilar(hit);
    });
  }

  buttons() {
    return [...this.list.querySelectorAll("button")];
  }

  clear() {
    this.hits = [];
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
    button.setAttribute("aria-label", `Result ${number + 1}: ${hit.id}, score ${hit.score.toFixed(3)}`);
    button.title = hit.id;
    const image = element("img");
    image.alt = "";
    image.loading = "lazy";
    image.decoding = "async";
    image.addEventListener("error", () => image.replaceWith(element("span", "blank", "no preview")));
    image.src = `${hit.thumbnail}?size=320`;
    const caption = element("span", "caption");
    caption.append(element("span", "id", hit.id), element("span", "score", hit.score.toFixed(3)));
    button.append(image, caption);
    button.addEventListener("click", () => this.show(number));
    item.append(button);
    return item;
  }

  show(number) {
    const hit = this.hits[number];
    if (!hit) return;
    this.at = number;
    const image = $("viewer-image");
    image.alt = hit.id;
    image.src = `${hit.thumbnail}?size=1024`;
    $("viewer-id").textContent = hit.id;
    $("original").href = hit.thumbnail.replace(/thumbnail$/, "content");
    $("previous").disabled = number === 0;
    $("next").disabled = number === this.hits.length - 1;
    const facts = [["score", hit.score.toFixed(4)], ["place", number + 1], ...Object.entries(hit.metadata ?? {})];
    $("viewer-facts").replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", plain(value))]),
    );
    if (!this.viewer.open) this.viewer.showModal();
  }

  onViewerKey(event) {
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
