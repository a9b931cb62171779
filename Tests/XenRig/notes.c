/* notes SOCKET: prints each datagram that it receives at a path, as a service manager receives the
 * notifications of a service, with a line of '--' after it. Runs until it is killed. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **words) {
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    static char bytes[1 << 16];
    int file = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (count != 2 || strlen(words[1]) >= sizeof name.sun_path) {
        fputs("notes SOCKET\n", stderr);
        return 2;
    }
    strcpy(name.sun_path, words[1]);
    if (file < 0 || bind(file, (struct sockaddr *)&name, sizeof name)) {
        perror(words[1]);
        return 1;
    }
    for (;;) {
        ssize_t size = recv(file, bytes, sizeof bytes, 0);
        if (size < 0) {
            perror("recv");
            return 1;
        }
        fwrite(bytes, 1, size, stdout);
        fputs("\n--\n", stdout);
        fflush(stdout);
    }
}
