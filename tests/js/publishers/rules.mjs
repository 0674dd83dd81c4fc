// The channels of the snippets.
import { read } from "../support/index.mjs";

/** TOML: a channel for plain events, and what docs/publishing.md says. */
export const RULES = `[[channels]]
pattern = "typing:{id}"
allow = "authenticated"
${/```toml\n([^]*?)```/.exec(read("docs/publishing.md"))[1]}`;
