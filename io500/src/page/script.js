(function () {
  "use strict";
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var prefersDark = window.matchMedia && window.matchMedia("(prefers-color-scheme: dark)").matches;
  if (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark;
      root.dataset.theme = isDark ? "light" : "dark";
    });
  }
  root.dataset.ready = "true";
})();
