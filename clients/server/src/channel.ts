import { TollgateError } from "./errors.js";

/** What a user or a thing has as its id. */
export type Id = string | number | bigint;

const MAX_ID_BYTES = 512;
const MAX_CHANNEL_BYTES = 255;
/** What ids become by mistake: `String(undefined)` and the like. */
const ACCIDENTS: ReadonlySet<string> = new Set(["undefined", "null", "NaN", "[object Object]"]);
/** First parts of names that the gateway uses for itself. */
const RESERVED: ReadonlySet<string> = new Set(["control", "canary", "gateway"]);
const ENCODED = /[%:*?[\]{}\\"'`<>\p{Z}]/gu;
const CONTROL = /\p{Cc}/u;
const FORBIDDEN = /[*?[\]{}\\"'`<>\p{White_Space}\p{Cc}]/u;

/** False where half of a surrogate pair stands alone: UTF-8 has no bytes for it. */
const isWellFormed = (text: string): boolean => !/\p{Cs}/u.test(text);
const bytesOf = (text: string): number => Buffer.byteLength(text);

/** The text of an id, as tokens carry it. */
export function idText(id: unknown): string {
  const refuse = (why: string): never => {
    throw new TollgateError("invalid_channel", `an id ${why}`);
  };
  if (typeof id === "number" && !Number.isSafeInteger(id)) {
    return refuse(`is the number ${id}: give a whole number below 2^53, a bigint or a string`);
  }
  if (typeof id !== "string" && typeof id !== "number" && typeof id !== "bigint") {
    return refuse(`is ${id === null ? "null" : `of type ${typeof id}`}: give a string, a whole number or a bigint`);
  }

  const text = String(id);
  if (text === "") return refuse("is empty");
  if (ACCIDENTS.has(text)) return refuse(`is the text "${text}"`);
  if (CONTROL.test(text)) return refuse("contains a control character");
  if (!isWellFormed(text)) return refuse("is not valid Unicode: it has half of a surrogate pair");
  if (bytesOf(text) > MAX_ID_BYTES) return refuse(`is longer than ${MAX_ID_BYTES} bytes`);
  return text;
}

/** The part of a channel's name that stands for an id: `did:privy:cm1` becomes `did%3Aprivy%3Acm1`. */
export function encodeId(id: Id): string {
  return idText(id).replace(ENCODED, (character) =>
    Array.from(Buffer.from(character), (byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`).join(""),
  );
}

/** A channel's name with its ids encoded: ``channel`user:${id}` ``. */
export function channel(parts: TemplateStringsArray, ...ids: Id[]): string {
  const name = parts.reduce((text, part, i) => text + encodeId(ids[i - 1] as Id) + part);
  checkChannel(name, "");
  return name;
}

function isAccident(part: string): boolean {
  try {
    return ACCIDENTS.has(decodeURIComponent(part));
  } catch {
    // It is no percent-encoding, and thus no encoded accident.
    return ACCIDENTS.has(part);
  }
}

/** Refuses what no client could subscribe to, and what is a mistake. */
export function checkChannel(name: unknown, prefix: string): asserts name is string {
  const refuse = (why: string): never => {
    throw new TollgateError("invalid_channel", `the channel ${why}`);
  };
  if (typeof name !== "string") return refuse(`is of type ${typeof name}: give a string such as user:u1`);

  const shown = JSON.stringify(name.slice(0, 300));
  if (prefix !== "" && name.startsWith(prefix)) {
    refuse(`${shown} begins with the prefix ${JSON.stringify(prefix)}: give the name without it`);
  }
  const parts = name.split(":");
  if (parts.includes("")) refuse(`${shown} is empty or has an empty part`);
  if (parts.slice(1).some(isAccident)) refuse(`${shown} has an id that is undefined, null, NaN or an object`);
  if (FORBIDDEN.test(name)) {
    const odd = "white space, a control character or one of * ? [ ] { } \\ \" ' ` < >";
    refuse(`${shown} contains ${odd}: encode ids with encodeId`);
  }
  if (!isWellFormed(name)) refuse(`${shown} is not valid Unicode`);
  if (bytesOf(name) > MAX_CHANNEL_BYTES) refuse(`${shown} is longer than ${MAX_CHANNEL_BYTES} bytes`);
  if (RESERVED.has(parts[0] as string)) refuse(`${shown} is reserved for the gateway`);
}
