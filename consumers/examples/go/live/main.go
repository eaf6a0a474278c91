// The live feed: every event from now on, nothing kept while you are away.
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./live
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

// connect makes a connection that comes back by itself, however long NATS is away, and says so.
func connect() (*nats.Conn, error) {
	return nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // else it is us
				fmt.Println("NATS is away")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { fmt.Println("NATS is back; what came meanwhile is not shown") }))
}

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	nc, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	prefix := cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")
	_, err = nc.Subscribe(prefix+".shard.*.events", func(message *nats.Msg) {
		var event struct {
			T string  `json:"t"`
			S *uint64 `json:"s"` // null in what the proxy adds
		}
		if err := json.Unmarshal(message.Data, &event); err != nil {
			log.Print(err)
			return
		}
		s := "null"
		if event.S != nil {
			s = fmt.Sprint(*event.S)
		}
		// NATS' own header: the subject the event is stored under.
		fmt.Println(message.Header.Get("Nats-Subject"), s, event.T)
	})
	if err != nil {
		log.Fatal(err)
	}
	<-stopping.Done()
}
