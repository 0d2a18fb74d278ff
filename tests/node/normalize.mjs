// A peer that knows nothing but the contract: normalizes what comes on standard input, and writes what it gets to
// standard output. Arguments: the server, the folder of the contract, rows, features, and how: `unary` or `stream`.
import { readFileSync, writeSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [target, folder, rows, features, how] = process.argv.slice(2);
const options = { includeDirs: [folder], longs: Number, enums: String };
const definition = loader.loadSync("normstats/v1/normalization_service.proto", options);
const service = grpc.loadPackageDefinition(definition).normstats.v1.NormalizationService;
const client = new service(target, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
});
const data = readFileSync(0);
const spec = { layerNorm: { normalizedShape: [Number(features)], eps: 1e-5 } };
const tensor = (count) => ({ dtype: "D_TYPE_FLOAT32", shape: [count, Number(features)] });

function write(reply, count) {
  const { dtype, shape } = reply.output;
  if (dtype !== "D_TYPE_FLOAT32" || String(shape) !== `${count},${features}`) {
    throw new Error(`not the shape that was sent: ${JSON.stringify(reply.output)}`);
  }
  for (let written = 0; written < reply.data.length; ) {
    written += writeSync(1, reply.data, written);
  }
}

if (how === "unary") {
  client.normalize({ spec, input: tensor(Number(rows)), data }, (error, reply) => {
    if (error) throw error;
    write(reply, Number(rows));
    client.close();
  });
} else {
  const sizes = [];
  const stream = client.normalizeStream();
  stream.on("error", (error) => { throw error; });
  stream.on("data", (reply) => write(reply, sizes.shift()));
  stream.on("end", () => client.close());
  stream.write({ open: { spec } });
  for (let start = 0; start < Number(rows); start += 300) {
    const count = Math.min(300, Number(rows) - start);
    const bytes = 4 * Number(features);
    sizes.push(count);
    stream.write({ chunk: { input: tensor(count) }, data: data.subarray(start * bytes, (start + count) * bytes) });
  }
  stream.end();
}
