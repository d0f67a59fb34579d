// Points at the same object everywhere in its article: box, row, phrases, heat. A click keeps it.
(() => {
  const kept = new WeakMap();
  const numbers = part => part ? part.dataset.o.split(" ") : null;
  const show = (article, wanted) => {
    article.classList.toggle("picked", Boolean(wanted));
    for (const part of article.querySelectorAll("[data-o]")) {
      part.classList.toggle("on", Boolean(wanted) && numbers(part).some(n => wanted.includes(n)));
    }
  };
  const found = event => {
    const article = event.target.closest("article");
    return [article, article && event.target.closest("[data-o]")];
  };
  const reveal = (article, wanted) => {
    const rows = article.querySelector(".rows");
    const row = rows && rows.querySelector(`[data-o="${wanted[0]}"]`);
    if (row) rows.scrollTop = row.offsetTop - rows.offsetTop - rows.clientHeight / 3;
  };
  const point = event => {
    const [article, part] = found(event);
    if (article) show(article, part ? numbers(part) : kept.get(article));
  };
  document.addEventListener("pointerover", point);
  document.addEventListener("focusin", point);
  document.addEventListener("pointerout", event => {
    const [article] = found(event);
    if (article && !article.contains(event.relatedTarget)) show(article, kept.get(article));
  });
  document.addEventListener("click", event => {
    const [article, part] = found(event);
    if (!article) return;
    const wanted = part ? numbers(part) : null, before = kept.get(article);
    const again = Boolean(wanted && before) && wanted.join() === before.join();
    kept.set(article, again ? null : wanted);
    show(article, kept.get(article));
    if (wanted && !part.closest(".rows")) reveal(article, wanted);
  });
})();
