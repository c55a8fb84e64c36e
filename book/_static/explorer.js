// The explorer: data and the view at rest are in the page (abplib/plots/explorer.py).
(() => {
  const make = (tag, about = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), about);
    element.append(...children);
    return element;
  };
  const overlap = (a, b) => {
    const side = (i) => Math.max(0, Math.min(a[i + 2], b[i + 2]) - Math.max(a[i], b[i]));
    const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
    const both = side(0) * side(1);
    return both / (area(a) + area(b) - both);
  };

  function start(root) {
    if (root.dataset.started) return;
    root.dataset.started = "yes";
    const { layers, scenes } = JSON.parse(root.querySelector("script").textContent);
    const find = (selector) => root.querySelector(selector);
    const picture = find(".abp-stage img"), canvas = find("canvas"), drawing = find("svg");
    const name = `explorer-${[...document.querySelectorAll(".abp-explorer")].indexOf(root)}`;
    let scene, token = -1;

    // One choice among several: native radio buttons, so that arrow keys and touch work.
    const choice = (legend, kind, items, chosen, act) => {
      const set = make("fieldset", { className: `abp-${kind}` }, make("legend", { textContent: legend }));
      items.forEach((item, i) => {
        const input = make("input", { type: "radio", name: `${name}-${kind}`, checked: i === chosen });
        input.addEventListener("change", () => act(i));
        set.append(make("label", {}, input, item));
      });
      return set;
    };
    const samples = choice("Sample", "samples", scenes.map((each) =>
      make("img", { src: each.picture, alt: each.instruction, title: each.instruction })), 0, show);
    const slider = make("input", { type: "range", min: 0, max: layers.length - 1, step: 1 });
    const reads = make("output");
    const places = make("label", { className: "abp-slider" }, "Proxy reads ", reads, slider);
    const kinds = [["exact", "exact box"], ["vlm", "the VLM's"], ["proxy", "the proxy's"]];
    const shown = make("fieldset", { className: "abp-kinds" }, make("legend", { textContent: "Boxes" }));
    for (const [kind, words] of kinds) {
      const box = make("input", { type: "checkbox", checked: true, value: kind });
      box.addEventListener("change", draw);
      shown.append(make("label", { className: kind }, box, words));
    }
    const words = make("div"), said = make("p", { className: "abp-said" });
    said.setAttribute("aria-live", "polite");
    slider.addEventListener("input", draw);
    find(".abp-controls").append(places, shown, words, said);
    root.prepend(samples);

    function show(index) {
      scene = scenes[index];
      token = -1;
      slider.value = scene.first;
      find(".abp-told").textContent = scene.instruction;
      picture.src = scene.picture;
      picture.alt = `${scene.instruction}: the scene`;
      words.replaceChildren(choice("Where a word looks", "words", ["(no map)", ...scene.words], 0,
        (i) => { token = i - 1; draw(); }));
      words.querySelectorAll("label")[scene.token + 1].classList.add("abp-dominant");
      find(".abp-edits").replaceChildren(...scene.edits.map((edit) => make("figure", {},
        make("img", { src: edit.picture, alt: `Edit by ${edit.name}: ${edit.said}` }),
        make("figcaption", {}, make("b", { textContent: edit.name }), ` ${edit.said}`))));
      draw();
    }

    function draw() {
      const place = +slider.value, proxy = scene.boxes[place];
      const boxes = { exact: scene.exact, vlm: scene.vlm, proxy };
      drawing.replaceChildren(...[...shown.querySelectorAll(":checked")].map((input) => input.value)
        .filter((kind) => boxes[kind]).map((kind) => {
          const [x1, y1, x2, y2] = boxes[kind];
          const frame = document.createElementNS("http://www.w3.org/2000/svg", "rect");
          for (const [key, value] of Object.entries({ class: kind, x: x1, y: y1, width: x2 - x1, height: y2 - y1 }))
            frame.setAttribute(key, value);
          return frame;
        }));
      reads.textContent = scene.places[place];
      slider.setAttribute("aria-valuetext", scene.places[place]);
      heat(layers[place]);
      const map = token < 0 ? "" : ` The map is that of “${scene.words[token]}” in layer ${layers[place]}.`;
      const asked = scene.vlm ? `, IoU ${overlap(scene.vlm, scene.exact).toFixed(2)}` : "";
      said.textContent = `The VLM, asked: ${scene.said}${asked}. The proxy of ${scene.places[place]}: ` +
        `IoU ${overlap(proxy, scene.exact).toFixed(2)}.${map}`;
    }

    function heat(layer) {
      canvas.hidden = token < 0;
      picture.classList.toggle("abp-dim", token >= 0);
      if (token < 0) return;
      const [rows, columns] = scene.grid, size = rows * columns;
      scene.bytes ??= Uint8Array.from(atob(scene.maps), (letter) => letter.charCodeAt(0));
      Object.assign(canvas, { width: columns, height: rows });
      const pixels = new ImageData(columns, rows), from = (layer * scene.words.length + token) * size;
      for (let cell = 0; cell < size; cell++)
        pixels.data.set([255, 176, 0, scene.bytes[from + cell]], 4 * cell);
      canvas.getContext("2d").putImageData(pixels, 0, 0);
    }
    show(0);
  }
  const all = () => document.querySelectorAll(".abp-explorer").forEach(start);
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", all) : all();
})();
