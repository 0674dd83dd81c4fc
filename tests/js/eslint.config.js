// All JavaScript of the repository, that in HTML and Markdown too: `make lint`.
import js from "@eslint/js";
import markdown from "@eslint/markdown";
import html from "eslint-plugin-html";
import globals from "globals";
import ts from "typescript-eslint";

const rules = {
  ...js.configs.recommended.rules,
  eqeqeq: "error",
  "no-unused-vars": ["error", { ignoreRestSiblings: true }],
  "prefer-const": "error",
};

export default [
  { ignores: ["**/target/", "**/dist/"] },
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  {
    files: ["**/*.js", "**/*.mjs"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.node },
    rules,
  },
  // What these tests run in pages.
  { files: ["**/browser/*.mjs"], languageOptions: { globals: globals.browser } },
  // PM2 takes CommonJS.
  { files: ["packaging/*.js"], languageOptions: { sourceType: "commonjs" } },
  {
    files: ["src/http/demo.html"],
    plugins: { html },
    languageOptions: { ecmaVersion: 2024, sourceType: "script", globals: globals.browser },
    // A page's own names may be those that a window has too.
    rules: { ...rules, "no-redeclare": ["error", { builtinGlobals: false }] },
  },
  // Types are tsc's business: here is what it does not look at.
  ...ts.configs.strict.map((config) => ({ ...config, files: ["**/*.ts", "**/*.mts"] })),
  {
    files: ["**/*.ts", "**/*.mts"],
    rules: { eqeqeq: "error", "prefer-const": "error" },
  },
  { files: ["**/*.md"], plugins: { markdown }, processor: "markdown/markdown" },
  {
    files: ["**/*.md/*.js"],
    languageOptions: {
      // The last three are functions of the reader's page.
      globals: { ...globals.browser, ...globals.node, reload: "readonly", show: "readonly", unlock: "readonly" },
    },
  },
];
