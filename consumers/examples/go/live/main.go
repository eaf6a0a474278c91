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

	"github.com/nats-io/nats.go"
)

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
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
