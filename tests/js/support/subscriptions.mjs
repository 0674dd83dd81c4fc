/**
 * The channels that a client has been told it is subscribed to; a socket or stream that is open is not subscribed yet.
 * A WebSocket is told in messages, a stream in events of that type.
 */
export function subscriptions(client) {
  const channels = new Set();
  const hear = ({ data }) => {
    const { type, data: about } = JSON.parse(data);
    if (type === "subscribed") channels.add(about.channelKey);
  };
  client.addEventListener("subscribed", hear);
  client.addEventListener("message", hear);
  return channels;
}
