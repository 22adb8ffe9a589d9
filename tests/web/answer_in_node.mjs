// node answer_in_node.mjs MODEL.onnx JOB.json: prints the answers as JSON.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { answerRows } from "./answer_rows.mjs";

const [model, job] = process.argv.slice(2);
console.log(JSON.stringify(await answerRows(ort, model, JSON.parse(await readFile(job, "utf-8")))));
