// Between require.js and the widget manager: widgets' own front ends (anywidget) lie beside them.
window.requirejs.config({
  baseUrl: new URL(
    (document.documentElement.dataset.content_root || "./") + "_static/vendor/",
    document.baseURI,
  ).href,
});
