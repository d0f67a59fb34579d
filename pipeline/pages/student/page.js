// Lights the cells of a word in its article. Maps are bytes: [map][entry][cell], 255 the brightest.
(() => {
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const kept = new WeakMap(), read = new WeakMap();
  const dataOf = article => {
    if (!read.has(article)) {
      const data = article.dataset;
      read.set(article, {maps: bytes(data.maps), meaning: bytes(data.meaning),
        shares: data.shares.split(" "), entries: Number(data.entries)});
    }
    return read.get(article);
  };
  const light = (cells, values) => cells.forEach((cell, i) => {
    cell.setAttribute("fill-opacity", (0.78 * (1 - values[i] / 255)).toFixed(3));
  });
  const show = (article, entry) => {
    const data = dataOf(article), select = article.querySelector("select");
    const map = Number(select.value), row = map * data.entries + entry;
    const attends = [...article.querySelectorAll(".attends rect")];
    const means = [...article.querySelectorAll(".means rect")], number = attends.length;
    light(attends, data.maps.subarray(row * number, (row + 1) * number));
    const meant = data.meaning.subarray(entry * number, (entry + 1) * number);
    light(means, meant.some(Boolean) ? meant : new Uint8Array(number).fill(255));
    let text = "";
    for (const part of article.querySelectorAll("[data-e]")) {
      const on = Number(part.dataset.e) === entry;
      part.classList.toggle("on", on);
      if (on && part.localName === "button") text = part.textContent;
    }
    article.querySelector(".status").textContent = `${text}, ` +
      `${select.selectedOptions[0].textContent}: ${data.shares[row]} % of it on the picture`;
  };
  const keep = (article, entry) => {
    kept.set(article, entry);
    for (const button of article.querySelectorAll("button[data-e]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.e) === entry);
    }
    show(article, entry);
  };
  const found = event => {
    const part = event.target.closest("[data-e]");
    return part ? [part.closest("article"), Number(part.dataset.e)] : [null, 0];
  };
  const point = event => {
    const [article, entry] = found(event);
    if (article) show(article, entry);
  };
  document.addEventListener("pointerover", point);
  document.addEventListener("focusin", point);
  document.addEventListener("pointerout", event => {
    const [article] = found(event);
    if (article) show(article, kept.get(article) || 0);
  });
  document.addEventListener("click", event => {
    const [article, entry] = found(event);
    if (article) keep(article, entry);
  });
  document.addEventListener("change", event => {
    const article = event.target.closest("article");
    show(article, kept.get(article) || 0);
  });
  document.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const button = event.target.closest("button[data-e]");
    if (!step || !button) return;
    const all = [...button.closest("article").querySelectorAll("button[data-e]")];
    const next = all[all.indexOf(button) + step];
    if (next) next.focus();
    event.preventDefault();
  });
  document.querySelectorAll("article").forEach(article => keep(article, 0));
})();
