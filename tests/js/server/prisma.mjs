// Prisma's client, generated as its users do it.
import { execFile } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { folder, packageOf } from "./fresh.mjs";

const SCHEMA = `generator client {
  provider = "prisma-client-js"
  output   = "./prisma-client"
}
datasource db {
  provider = "postgresql"
}
model Order {
  id   Int    @id @default(autoincrement())
  item String
  @@map("orders")
}
`;
let generated;

/** Writes the client into the fresh folder, once; answers where it is. */
export function generatePrisma() {
  generated ??= (async () => {
    writeFileSync(path.join(folder, "schema.prisma"), SCHEMA);
    const cli = path.join(packageOf("prisma"), "build/index.js");
    // The engine of migrations, a download from Prisma's own server, is not needed to generate; named, it is not sought.
    const env = { PATH: process.env.PATH, PRISMA_SCHEMA_ENGINE_BINARY: "/bin/true", CHECKPOINT_DISABLE: "1", PRISMA_HIDE_UPDATE_MESSAGE: "1" };
    await promisify(execFile)(process.execPath, [cli, "generate", "--schema", "schema.prisma"], { cwd: folder, env });
    return path.join(folder, "prisma-client");
  })();
  return generated;
}
