// Builds a component as those published for Newton are built: ComponentizeJS on SpiderMonkey, without stdio, random, clocks, http and
// fetch-event, so that what is left are the imports of newton:provider.
//
//   node build.mjs <source.js> <newton-provider.wit> <output.wasm>       (in a folder where package.json is installed)
import { componentize } from "@bytecodealliance/componentize-js";
import { writeFile } from "node:fs/promises";

const [sourcePath, witPath, output] = process.argv.slice(2);
const disableFeatures = ["stdio", "random", "clocks", "http", "fetch-event"];
const { component } = await componentize({ sourcePath, witPath, worldName: "newton-provider", disableFeatures });
await writeFile(output, component);
