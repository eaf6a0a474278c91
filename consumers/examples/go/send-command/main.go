// Gateway commands through the proxy that holds the shard: presence, and members of a guild.
//
//	go run ./send-command presence 0 chess               # shard 0 plays chess
//	go run ./send-command members 928069340888969672     # all members of a guild (GUILD_MEMBERS intent)
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Gateway opcodes (Discord, Gateway Opcodes).
const (
	presenceUpdate      = 3
	requestGuildMembers = 8
)

var prefix = cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")

const (
	chunkTimeout = 30 * time.Second
	// How far our clock may be from the server's.
	clockMargin = 10 * time.Second
)

type reply struct {
	Status          string  `json:"status"`
	RetryAfterMs    uint64  `json:"retry_after_ms"`
	Error           *string `json:"error"`
	MergedWithNonce *string `json:"merged_with_nonce"`
	SentMsAgo       uint64  `json:"sent_ms_ago"`
}

// send sends a gateway payload; an error unless it was sent or waits for the shard's rate limit.
func send(nc *nats.Conn, subject string, op int, d map[string]any) (reply reply, err error) {
	payload, err := json.Marshal(map[string]any{"op": op, "d": d})
	if err != nil {
		return reply, err
	}
	message, err := nc.Request(subject, payload, 5*time.Second)
	if errors.Is(err, nats.ErrNoResponders) {
		return reply, fmt.Errorf("nobody answers %s: no proxy holds that shard", subject)
	}
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(message.Data, &reply); err != nil {
		return reply, err
	}
	if reply.Status == "rejected" && reply.Error != nil {
		return reply, fmt.Errorf("rejected: %s", *reply.Error)
	}
	fmt.Println(reply.Status)
	return reply, nil
}

func presence(nc *nats.Conn, shard, activity string) error {
	activities := []map[string]any{{"name": activity, "type": 0}}
	d := map[string]any{"since": nil, "activities": activities, "status": "online", "afk": false}
	_, err := send(nc, prefix+".shard."+shard+".commands", presenceUpdate, d)
	return err
}

// members asks for all members; Discord answers with GUILD_MEMBERS_CHUNK events, which have our nonce.
func members(nc *nats.Conn, guild string) error {
	nonce := nats.NewInbox()[len(nats.InboxPrefix):]
	d := map[string]any{"guild_id": guild, "query": "", "limit": 0, "nonce": nonce}
	reply, err := send(nc, prefix+".guild."+guild+".commands", requestGuildMembers, d)
	if err != nil {
		return err
	}
	// All members of a guild may be asked for once in 30 s: if somebody just did, theirs are our chunks,
	// and they may have come already. The stream still has them.
	if reply.MergedWithNonce != nil {
		nonce = *reply.MergedWithNonce
	}
	since := time.Now().Add(-time.Duration(reply.SentMsAgo)*time.Millisecond - clockMargin)
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	chunks, err := js.OrderedConsumer(context.Background(), strings.ToUpper(prefix)+"_EVENTS", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{prefix + ".shard.*.events." + guild + ".GUILD_MEMBERS_CHUNK"},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy,
		OptStartTime:   &since,
	})
	if err != nil {
		return err
	}
	patience := chunkTimeout + time.Duration(reply.RetryAfterMs)*time.Millisecond
	for seen := 0; ; {
		message, err := chunks.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			return err
		}
		var event struct {
			D struct {
				Nonce      string            `json:"nonce"`
				ChunkIndex int               `json:"chunk_index"`
				ChunkCount int               `json:"chunk_count"`
				Members    []json.RawMessage `json:"members"`
			} `json:"d"`
		}
		if err := json.Unmarshal(message.Data(), &event); err != nil {
			return err
		}
		if event.D.Nonce != nonce {
			continue
		}
		seen++
		fmt.Printf("chunk %d of %d: %d members\n", event.D.ChunkIndex+1, event.D.ChunkCount, len(event.D.Members))
		if seen == event.D.ChunkCount {
			return nil
		}
	}
}

func main() {
	log.SetFlags(0)
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == "presence":
		err = presence(nc, args[1], args[2])
	case len(args) == 2 && args[0] == "members":
		err = members(nc, args[1])
	default:
		err = errors.New("usage: send-command presence SHARD ACTIVITY | members GUILD")
	}
	if err != nil {
		nc.Close()
		log.Fatal(err)
	}
}
