// Gateway commands through the proxy that holds the shard: presence, and members of a guild.
//
//	go run ./send-command presence 0 chess               # shard 0 plays chess
//	go run ./send-command members 928069340888969672     # all members of a guild (GUILD_MEMBERS intent)
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Gateway opcodes (Discord, Gateway Opcodes).
const (
	presenceUpdate      = 3
	requestGuildMembers = 8
)

var prefix = cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")

// send sends a gateway payload; an error unless it was sent or waits for the shard's rate limit.
func send(nc *nats.Conn, subject string, op int, d map[string]any) error {
	payload, err := json.Marshal(map[string]any{"op": op, "d": d})
	if err != nil {
		return err
	}
	message, err := nc.Request(subject, payload, 5*time.Second)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("nobody answers %s: no proxy holds that shard", subject)
	}
	if err != nil {
		return err
	}
	var reply struct {
		Status       string  `json:"status"`
		RetryAfterMs *uint64 `json:"retry_after_ms"`
		Error        *string `json:"error"`
	}
	if err := json.Unmarshal(message.Data, &reply); err != nil {
		return err
	}
	if reply.Status == "rejected" && reply.Error != nil {
		return fmt.Errorf("rejected: %s", *reply.Error)
	}
	fmt.Println(reply.Status)
	return nil
}

func presence(nc *nats.Conn, shard, activity string) error {
	activities := []map[string]any{{"name": activity, "type": 0}}
	d := map[string]any{"since": nil, "activities": activities, "status": "online", "afk": false}
	return send(nc, prefix+".shard."+shard+".commands", presenceUpdate, d)
}

// members asks for all members; Discord answers with GUILD_MEMBERS_CHUNK events, which have our nonce.
func members(nc *nats.Conn, guild string) error {
	nonce := nats.NewInbox()[len(nats.InboxPrefix):]
	// Before asking: the live feed keeps nothing.
	feed, err := nc.SubscribeSync(prefix + ".shard.*.events")
	if err != nil {
		return err
	}
	d := map[string]any{"guild_id": guild, "query": "", "limit": 0, "nonce": nonce}
	if err := send(nc, prefix+".guild."+guild+".commands", requestGuildMembers, d); err != nil {
		return err
	}
	for seen := 0; ; {
		message, err := feed.NextMsg(30 * time.Second)
		if err != nil {
			return err
		}
		// Cheaper than reading every event's JSON.
		if !strings.HasSuffix(message.Header.Get("Nats-Subject"), "."+guild+".GUILD_MEMBERS_CHUNK") {
			continue
		}
		var event struct {
			D struct {
				Nonce      string            `json:"nonce"`
				ChunkIndex int               `json:"chunk_index"`
				ChunkCount int               `json:"chunk_count"`
				Members    []json.RawMessage `json:"members"`
			} `json:"d"`
		}
		if err := json.Unmarshal(message.Data, &event); err != nil {
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
