// WebSocket clients of npm, each as its manual has it. `tell` gets what a client hears; a client asks `token` before
// each connection, and subscribes with its position whenever it is open.
import { createRequire } from "node:module";
import { JSDOM } from "jsdom";
import PartySocket from "partysocket/ws";
import ReconnectingWebSocket from "reconnecting-websocket";
import WebSocket from "ws";

const require = createRequire(import.meta.url);
const QUICKLY = { WebSocket, minReconnectionDelay: 100, maxReconnectionDelay: 500, connectionTimeout: 4000 };

/** The side of the application that all of them share: subscribing, and where it stands. */
function conversation(channel, tell) {
  let since;
  return {
    open: (send) => send(JSON.stringify({ type: "subscribe", channel, since })),
    message(text) {
      const message = JSON.parse(text);
      const { epoch, offset } = message.type === "subscribed" ? message.data : message;
      if (epoch) since = { epoch, offset };
      if (message.type === "subscribed") tell({ live: true, lost: message.data.recovered === false });
      if (message.type === "event") tell({ n: message.data.n });
      if (message.type === "gap") tell({ lost: true });
    },
    close: ({ code, reason }) => tell({ code, reason }),
  };
}

const address = (url, token) => `${url.replace("http", "ws")}/ws?format=envelope&token=${token}`;

function listening(socket, talk) {
  socket.addEventListener("open", () => talk.open((text) => socket.send(text)));
  socket.addEventListener("message", ({ data }) => talk.message(data));
  socket.addEventListener("close", (event) => talk.close(event));
  socket.addEventListener("error", () => {});
}

export const sockets = {
  ws: ({ url, token, channel, tell }) => {
    const talk = conversation(channel, tell);
    let socket;
    let again;
    const connect = () => {
      // Without a library it is the application that comes back.
      socket = new WebSocket(`${url.replace("http", "ws")}/ws?format=envelope`, ["tollgate", `bearer.${token()}`]);
      listening(socket, talk);
      socket.addEventListener("close", () => (again = setTimeout(connect, 300)));
    };
    connect();
    return () => {
      clearTimeout(again);
      socket.removeAllListeners("close");
      socket.terminate();
    };
  },

  partysocket: ({ url, token, channel, tell }) => {
    const socket = new PartySocket(() => address(url, token()), [], QUICKLY);
    listening(socket, conversation(channel, tell));
    return () => socket.close();
  },

  "reconnecting-websocket": ({ url, token, channel, tell }) => {
    const socket = new ReconnectingWebSocket(() => address(url, token()), [], QUICKLY);
    listening(socket, conversation(channel, tell));
    return () => socket.close();
  },

  "react-use-websocket": ({ url, token, channel, tell }) => {
    const { window } = new JSDOM("<div id=app></div>");
    for (const [name, value] of Object.entries({ window, document: window.document, navigator: window.navigator, WebSocket })) {
      Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
    }
    const { createElement } = require("react");
    const { createRoot } = require("react-dom/client");
    const { default: useWebSocket } = require("react-use-websocket");
    const talk = conversation(channel, tell);
    // The same function at each rendering: another one is another connection.
    const where = async () => address(url, token());
    const Page = () => {
      const { getWebSocket } = useWebSocket(where, {
        onOpen: () => talk.open((text) => getWebSocket().send(text)),
        onMessage: ({ data }) => talk.message(data),
        onClose: (event) => talk.close(event),
        onError: () => {},
        shouldReconnect: () => true,
        reconnectAttempts: 1000,
        reconnectInterval: 300,
      });
      return null;
    };
    const root = createRoot(window.document.getElementById("app"));
    root.render(createElement(Page));
    return () => root.unmount();
  },
};
