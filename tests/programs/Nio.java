import java.net.ConnectException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;

/** Many channels of one selector, each registered before it connects: HOST PORT CLOSED_PORT COUNT. */
public class Nio {
    public static void main(String[] args) throws Exception {
        var echo = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        var closed = new InetSocketAddress(args[0], Integer.parseInt(args[2]));
        int count = Integer.parseInt(args[3]);
        int echoed = 0, refused = 0;
        try (var selector = Selector.open()) {
            for (int i = 0; i < count + 1; i++) {
                var channel = SocketChannel.open();
                channel.configureBlocking(false);
                channel.register(selector, SelectionKey.OP_CONNECT, ByteBuffer.wrap(("ping " + i).getBytes(StandardCharsets.UTF_8)));
                // Registers it with the kernel; an unconnected socket hangs up, which is of no interest.
                selector.selectNow();
                selector.selectedKeys().clear();
                channel.connect(i < count ? echo : closed);
            }
            var end = System.nanoTime() + 20_000_000_000L;
            while (echoed + refused < count + 1 && System.nanoTime() < end) {
                selector.select(1000);
                for (var keys = selector.selectedKeys().iterator(); keys.hasNext(); keys.remove()) {
                    var key = keys.next();
                    var channel = (SocketChannel) key.channel();
                    var sent = (ByteBuffer) key.attachment();
                    if (key.isConnectable()) {
                        try {
                            if (!channel.finishConnect()) continue;
                        } catch (ConnectException e) {
                            refused++;
                            channel.close();
                            continue;
                        }
                        channel.write(sent);
                        key.interestOps(SelectionKey.OP_READ);
                    } else if (key.isReadable()) {
                        var got = ByteBuffer.allocate(99);
                        channel.read(got);
                        if (got.flip().equals(sent.flip())) echoed++;
                        channel.close();
                    }
                }
            }
        }
        System.out.println(echoed + " echoed, " + refused + " refused");
    }
}
