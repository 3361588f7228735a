/** A bare grpc-js server that sends back what it gets: what this library reaches when nothing is done with a request. */
import { createServer } from "node:net";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";

const keep = (bytes: Buffer): Buffer => bytes;
const path = process.argv[2] ?? "";

const server = new Server({ "grpc.enable_channelz": 0 });
const implementation: UntypedServiceImplementation = {
  echo: (call: { request: Buffer }, callback: (error: null, answer: Buffer) => void) => callback(null, call.request),
};
server.addService(
  {
    echo: {
      path,
      requestStream: false,
      responseStream: false,
      requestSerialize: keep,
      requestDeserialize: keep,
      responseSerialize: keep,
      responseDeserialize: keep,
    },
  },
  implementation,
);
const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
const sockets = createServer({ noDelay: true }, (socket) => injector.injectConnection(socket));
sockets.listen(0, "127.0.0.1", () => process.send?.((sockets.address() as { port: number }).port));
process.on("disconnect", () => process.exit());
