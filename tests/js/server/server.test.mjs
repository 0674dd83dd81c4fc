// clients/server, installed once for all that is tried of it.
import "./package.mjs";
import "./values.mjs";
import "./tokens.mjs";
import "./publishing.mjs";
import "./deadlines.mjs";
import "./outbox.mjs";
import "./languages.mjs";
import "./example.mjs";
